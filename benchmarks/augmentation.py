"""The multi-crop of pre-training, decoding included: this project against lightly's DINO transform (torchvision on PIL images).

  python -m benchmarks.augmentation          256 images
  python -m benchmarks.augmentation --full   2,048
  python -m benchmarks.augmentation --loops  without lightly and without decoding: a CPU's compiled loops against the batched
                                             operators of accelerators, both on this CPU

Input: JPEGs of 256 x 128. Output: batches of 64 with 2 crops of 256 x 128 and 8 of 128 x 64, normalized. Each side has 2 cores:
this project uses two threads, lightly a DataLoader with two worker processes. Crops, jitter, grayscale, blur and solarization
are the same.

Install lightly beside the environment, not into it, because it would change the versions of other packages:
  pip install --target lightly-packages --no-deps lightly lightly-utils pytorch-lightning torchmetrics lightning-utilities
  PYTHONPATH=lightly-packages python -m benchmarks.augmentation
"""

import io
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.measure import Compared, arguments_of, measure, print_machine

QUICK, FULL = 256, 2048
GLOBAL, LOCAL, NUM_LOCAL = (256, 128), (128, 64), 8
BATCH, CORES, DISTINCT = 64, 2, 64


def encoded(num):
    """`num` JPEGs of synthetic people, with repetitions."""
    from PIL import Image

    from reidssl.synthetic.people import SyntheticConfig, render, specifications

    config = SyntheticConfig(image_size=GLOBAL, num_pretrain=DISTINCT)
    images = []
    for spec in specifications(config, "pretrain")[:DISTINCT]:
        sink = io.BytesIO()
        Image.fromarray(render(spec, config)).save(sink, "JPEG", quality=90)
        images.append(sink.getvalue())
    return [images[i % len(images)] for i in range(num)]


def ours(num):
    """This project's side: threads decode the next batch while MultiCrop works on the current one."""
    import torch

    from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
    from reidssl.data.decode import decode_image
    from reidssl.seeding import sample_seeds

    torch.set_num_threads(CORES)
    multicrop = MultiCrop(MultiCropConfig(global_size=GLOBAL, local_size=LOCAL, num_local=NUM_LOCAL))
    data, pool = encoded(num), ThreadPoolExecutor(CORES)

    def decode(start):
        return pool.map(lambda one: decode_image(one, GLOBAL), data[start : start + BATCH])

    def run(stop):
        ahead = decode(0)
        for start in range(0, stop, BATCH):
            images = np.stack(list(ahead))
            ahead = decode(start + BATCH)
            crops = multicrop(torch.from_numpy(images), sample_seeds(0, 0, [str(start + i) for i in range(len(images))]))
        return crops

    run(BATCH)
    return lambda: run(num), summary


def loops(num):
    """The crops without decoding, by the compiled loops that CPUs use."""
    return _alone(num, use_compiled=True)


def operators(num):
    """The crops without decoding, by the batched operators that accelerators use."""
    return _alone(num, use_compiled=False)


def _alone(num, use_compiled):
    import torch

    from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
    from reidssl.data.decode import decode_image
    from reidssl.seeding import sample_seeds

    torch.set_num_threads(CORES)
    multicrop = MultiCrop(MultiCropConfig(global_size=GLOBAL, local_size=LOCAL, num_local=NUM_LOCAL), use_compiled)
    images = torch.from_numpy(np.stack([decode_image(one, GLOBAL) for one in encoded(BATCH)]))

    def run(stop):
        for start in range(0, stop, BATCH):
            crops = multicrop(images, sample_seeds(0, 0, [str(start + i) for i in range(BATCH)]))
        return crops

    run(BATCH)
    return lambda: run(num), summary


class Decoded:
    """A data set as users of lightly write it: decodes and transforms one image."""

    def __init__(self, data, transform):
        self.data, self.transform = data, transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        from PIL import Image

        return self.transform(Image.open(io.BytesIO(self.data[index])).convert("RGB"))


def lightly(num):
    """lightly's side: DINOTransform in a DataLoader. Its default strengths are those of the published recipe."""
    import torch
    from lightly.transforms import DINOTransform

    torch.set_num_threads(1)
    transform = DINOTransform(global_crop_size=GLOBAL, local_crop_size=LOCAL, n_local_views=NUM_LOCAL)
    loader = torch.utils.data.DataLoader(Decoded(encoded(num), transform), BATCH, num_workers=CORES, persistent_workers=True)

    def run():
        return deque(loader, maxlen=1)[0]  # reads all batches and keeps the last

    run()  # starts the workers
    return run, summary


def summary(crops):
    """Statistics of the last batch that agree if the settings agree."""
    pixels = [np.concatenate([crop.numpy().ravel() for crop in part]) for part in (crops[:2], crops[2:])]
    return {
        "shapes": [tuple(crops[0].shape), tuple(crops[-1].shape)],
        "crops": len(crops),
        "mean and spread of global crops": [f"{pixels[0].mean():.2f}", f"{pixels[0].std():.2f}"],
        "mean and spread of local crops": [f"{pixels[1].mean():.2f}", f"{pixels[1].std():.2f}"],
    }


def main() -> None:
    arguments = arguments_of(__doc__, loops="compiled loops against batched operators, on decoded images")
    num = FULL if arguments.full else QUICK
    if arguments.loops:
        print_machine()
        sides = [measure(__spec__.name, side, num, arguments.repeats) for side in ("loops", "operators")]
        Compared(f"2 + 8 crops of {num:,} decoded images", *sides, "batched operators").print()
        return
    try:
        import lightly.transforms  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"error: lightly cannot be imported ({error}); how to install it beside the environment:\n\n{__doc__}"
        ) from None
    print_machine()
    sides = [measure(__spec__.name, side, num, arguments.repeats) for side in ("ours", "lightly")]
    Compared(f"2 + 8 crops of {num:,} images", *sides, "lightly's DINOTransform").print()
    print(f"  images per second: {num / sides[0].seconds:.0f} against {num / sides[1].seconds:.0f}")


if __name__ == "__main__":
    main()
