"""Sinkhorn-Knopp centering of a teacher's logits (SwAV, arXiv 2006.09882, section 3.1; DINOv2, arXiv 2304.07193)."""

import torch
from torch import Tensor

ITERATIONS = 3


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = ITERATIONS) -> Tensor:
    """Soft assignments of rows to prototypes that use every prototype equally often.

        Q = exp(logits / temperature);  repeat: scale columns of Q to sum N / K, then rows of Q to sum 1

    Nothing is gathered from other micro-batches or workers, so the result depends only on the micro-batch. DINOv2 normalizes over
    the rows of all GPUs instead. With fewer rows than prototypes, both are soft constraints, and a larger micro-batch reduces the
    difference.

    Args:
        logits: float (N, K).
        temperature: positive; lower is sharper.
        iterations: at least 1; the published count is 3.

    Returns:
        float32 (N, K), no gradient. Rows sum to 1, columns approximately to N / K; more iterations come closer.

    Raises ValueError for empty logits or arguments out of range.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be (rows, prototypes) with at least one of each: got shape {tuple(logits.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive: got {temperature}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1: got {iterations}")
    log_q = logits.float() / temperature  # in logarithms, since exp(1 / 0.01) overflows fp32
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)  # also cancels the constant factor N / K of the columns
    return log_q.exp()
