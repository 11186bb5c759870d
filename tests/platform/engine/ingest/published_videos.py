"""LUPerson in the published layout, made here: a list, small videos, and a pickle of detections for each."""

import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (120, 160)
"""(height, width) of the videos."""


def write_video(path: Path, frames: int, size: tuple[int, int] = SIZE) -> None:
    """Frame n (from 1) is gray of level 20 n, with a white right half, so that frames and scales are visible in crops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width, stream.height, stream.bit_rate = size[1], size[0], 4_000_000
        for number in range(1, frames + 1):
            pixels = np.full((*size, 3), 20 * number, np.uint8)
            pixels[:, size[1] // 2 :] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def table(scale: float = 1.0, frames: tuple[int, ...] = (1, 5)) -> dict[int, list[Any]]:
    """In each frame one box left and one right of the middle; `scale` is that of the recorded size to SIZE."""
    boxes = (np.array([10, 20, 50, 119], np.float32) * scale, np.array([90, 20, 130, 119], np.float32) * scale)
    return {
        frame: [
            [number, {"bbox": box, "conf": 0.5 + number / 4, "pose": np.zeros((17, 2), np.float32)}]
            for number, box in enumerate(boxes)
        ]
        for frame in frames
    }


def write_published(root: Path, names: list[str], scale: float = 1.0) -> None:
    """vnames.txt, videos/<country>/<city>/<name>.mp4 and dets/<name>.pkl below `root`."""
    (root / "dets").mkdir(parents=True)
    (root / "vnames.txt").write_text("".join(f"{name}\n" for name in names))
    for name in names:
        country, city, _ = name.split("+")
        write_video(root / "videos" / country / city / f"{name}.mp4", 6)
        (root / "dets" / f"{name}.pkl").write_bytes(pickle.dumps(table(scale)))
