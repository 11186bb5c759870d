"""The one place that knows about devices."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from reidssl.accelerator import send
from reidssl.checks import one_of
from reidssl.choices import PRECISIONS

Batch = TypeVar("Batch")


def device() -> torch.device:
    """The accelerator given to this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def precision(choice: str, on: torch.device | None = None) -> str:
    """fp32 or bf16: what a configured `choice` means on a device (None: this process's).

    auto: bf16 on GPUs that compute in it, fp32 elsewhere.
    """
    one_of(PRECISIONS, precision=choice)
    if choice != "auto":
        return choice
    return "bf16" if (on or device()).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def allow_fast_products(resolved: str) -> None:
    """With bf16 on a GPU, what is left in float32 may multiply in TF32 (losses and crops refuse); fp32 means fp32."""
    if device().type == "cuda":
        torch.set_float32_matmul_precision("high" if resolved == "bf16" else "highest")
        torch.backends.cudnn.allow_tf32 = resolved == "bf16"


def keep_compiled_code() -> None:
    """What torch.compile makes is kept in the user's cache folder, so that a restarted worker finds it (TORCHINDUCTOR_CACHE_DIR
    names another place). Call it before anything is compiled."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(cache, "reidssl", "inductor"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")


def upload(array: np.ndarray[Any, Any] | Tensor) -> Tensor:
    """An array of the host on this process's device; on a GPU through pinned memory, without waiting for it."""
    return send(array if isinstance(array, Tensor) else torch.from_numpy(array), device())


def ahead(batches: Iterable[Batch], make: Callable[[Batch], Sequence[Tensor]]) -> Iterator[tuple[Batch, Sequence[Tensor]]]:
    """(batch, make(batch)) of each batch in turn.

    On a GPU `make` runs one batch ahead on a stream of its own, while the caller computes with the one before; it may read
    nothing that the caller's stream writes. On a CPU a batch is fetched and made when it is asked for.
    """
    if device().type != "cuda":
        for batch in batches:
            yield batch, make(batch)
        return
    side = torch.cuda.Stream()
    coming: tuple[Batch, Sequence[Tensor], torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            made = make(batch)
        following = batch, made, side.record_event()
        if coming is not None:
            yield _taken_over(*coming)
        coming = following
    if coming is not None:
        yield _taken_over(*coming)


def _taken_over(batch: Batch, made: Sequence[Tensor], event: torch.cuda.Event) -> tuple[Batch, Sequence[Tensor]]:
    """What another stream made, safe to use on this one; its memory is not given away before this one is done with it."""
    stream = torch.cuda.current_stream()
    stream.wait_event(event)
    for tensor in made:
        tensor.record_stream(stream)
    return batch, made


def claim() -> None:
    """In a Ray Train worker: make the GPU that Train gave to it the current one."""
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())


def backend(gpus_per_worker: float) -> str:
    """Collective backend of workers with so many GPUs each."""
    return "nccl" if gpus_per_worker else "gloo"


def use_threads(count: int) -> None:
    """Ray sets OMP_NUM_THREADS=1 whatever was asked for: give torch `count` threads (0: leave it)."""
    if count > 0:
        os.environ["OMP_NUM_THREADS"] = str(count)
        torch.set_num_threads(count)
