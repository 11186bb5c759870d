"""All code that depends on the device: device, precision, transfers, collective backend, threads."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from reidssl.accelerator import send
from reidssl.checks import one_of
from reidssl.choices import PRECISIONS

Batch = TypeVar("Batch")


def device() -> torch.device:
    """The current accelerator of this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def precision(choice: str, on: torch.device | None = None) -> str:
    """The precision, "fp32" or "bf16", for a configured `choice` on a device (None: the device of this process).

    auto: bf16 on GPUs with native bf16, fp32 otherwise. Raises ValueError for an unknown choice.
    """
    one_of(PRECISIONS, precision=choice)
    if choice != "auto":
        return choice
    return "bf16" if (on or device()).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def allow_fast_products(resolved: str) -> None:
    """On a GPU, allow TF32 for float32 products if the precision is bf16, and forbid it if it is fp32.

    Losses and crops disable TF32 themselves.
    """
    if device().type == "cuda":
        torch.set_float32_matmul_precision("high" if resolved == "bf16" else "highest")
        torch.backends.cudnn.allow_tf32 = resolved == "bf16"


def keep_compiled_code() -> None:
    """Keep compiled code of torch.compile in the user's cache folder, so that a restarted worker can use it.

    Call it before anything is compiled. TORCHINDUCTOR_CACHE_DIR overrides the folder.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    # Importing torch's compiler, as timm does, sets the variable to a folder in /tmp.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(cache, "reidssl", "inductor")
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")


def upload(array: np.ndarray[Any, Any] | Tensor) -> Tensor:
    """Copy a host array to the device of this process. On a GPU, the copy uses pinned memory and is asynchronous."""
    return send(array if isinstance(array, Tensor) else torch.from_numpy(array), device())


class Ahead(Generic[Batch]):
    """Iterator over (batch, make(batch)), whose next item a GPU can make while it is busy with the current one.

        for batch, made in batches:
            ...                     start the work on `made`
            batches.prepare()       make the next item before anything waits for the device

    On a GPU, `make` runs on its own stream. It must not read anything that the caller's stream writes. On a CPU, `prepare` does
    nothing: a batch is fetched and made when it is requested.
    """

    def __init__(self, batches: Iterable[Batch], make: Callable[[Batch], Sequence[Tensor]]) -> None:
        self._batches, self._make = iter(batches), make
        self._side = torch.cuda.Stream() if device().type == "cuda" else None
        self._coming: tuple[Batch, Sequence[Tensor], torch.cuda.Event] | None = None

    def __iter__(self) -> "Ahead[Batch]":
        return self

    def prepare(self) -> None:
        """Fetch and make the next item now, on a GPU only. At the end of the batches it does nothing."""
        if self._side is None or self._coming is not None:
            return
        batch = next(self._batches, None)
        if batch is not None:
            with torch.cuda.stream(self._side):
                made = self._make(batch)
            self._coming = batch, made, self._side.record_event()

    def __next__(self) -> tuple[Batch, Sequence[Tensor]]:
        if self._side is None:
            batch = next(self._batches)
            return batch, self._make(batch)
        self.prepare()
        if self._coming is None:
            raise StopIteration
        coming, self._coming = self._coming, None
        return _taken_over(*coming)


def _taken_over(batch: Batch, made: Sequence[Tensor], event: torch.cuda.Event) -> tuple[Batch, Sequence[Tensor]]:
    """Make tensors of another stream safe to use on the current stream, which also keeps their memory until it is done."""
    stream = torch.cuda.current_stream()
    stream.wait_event(event)
    for tensor in made:
        tensor.record_stream(stream)
    return batch, made


def most_gpu_memory_gib() -> float:
    """Largest memory in GiB that tensors of this process have taken on its GPU; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device().type == "cuda" else 0.0


def claim() -> None:
    """Make the GPU that Ray Train assigned to this worker the current device. Call it in a Train worker only."""
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())


def backend(gpus_per_worker: float) -> str:
    """Name of the collective backend: "nccl" for workers with GPUs, else "gloo"."""
    return "nccl" if gpus_per_worker else "gloo"


def use_threads(count: int) -> None:
    """Set the number of torch threads (0: unchanged). Needed because Ray always sets OMP_NUM_THREADS=1."""
    if count > 0:
        os.environ["OMP_NUM_THREADS"] = str(count)
        torch.set_num_threads(count)
