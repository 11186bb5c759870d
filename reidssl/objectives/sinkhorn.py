"""Sinkhorn-Knopp centring of a teacher's logits (SwAV, arXiv 2006.09882, section 3.1; DINOv2, arXiv 2304.07193)."""

import torch
from torch import Tensor

ITERATIONS = 3


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = ITERATIONS) -> Tensor:
    """Soft assignments that use every prototype equally often over the given rows.

        Q = exp(logits / temperature);  repeated: columns of Q to sum N / K, then rows of Q to sum 1

    The rows are the whole population: nothing is gathered from other micro-batches or workers, so the result is a
    function of the micro-batch alone, whoever computes it. DINOv2 normalizes over the rows of all GPUs instead; with
    fewer rows than prototypes either is a soft constraint, and a larger micro-batch moves the one towards the other.

    Args:
        logits: float (N, K).
        temperature: positive; lower is sharper.
        iterations: at least 1; the published count is 3.

    Returns:
        float32 (N, K), rows sum to 1; columns to N / K nearly, the closer the more iterations. No gradient.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be (rows, prototypes) with at least one of each: got shape {tuple(logits.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive: got {temperature}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1: got {iterations}")
    log_q = logits.float() / temperature  # logarithms: exp(1 / 0.01) is out of the range of fp32
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)  # also removes the constant N / K of the columns
    return log_q.exp()
