"""Matrix products whose every entry depends on its two rows alone, so that equal pairs score equally wherever they stand.

A BLAS computes the last few rows and columns of a product by other kernels, which round differently: two copies of an image
would then have different cosines with a third one, and ties would fall as the blocks do. Operands of a multiple of 64
rows have no such rest.
"""

from torch import Tensor

MULTIPLE = 64


def products_buffer(like: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """Room for `products` of up to so many rows and columns: large arrays made afresh cost more than the product."""
    return like.new_empty(_whole(num_rows) * num_columns)


def products(rows: Tensor, columns: Tensor, buffer: Tensor) -> Tensor:
    """rows @ columns.T: float32 (b, c), contiguous in `buffer`.

    Only what is left over a multiple of 64 is copied, with zeros after it.

    Args:
        rows, columns: float32 (b, D) and (c, D) on one device.
        buffer: from `products_buffer`; overwritten.
    """
    padded, full = _padded(rows), len(columns) - len(columns) % MULTIPLE
    scores = buffer[: len(padded) * len(columns)].view(len(padded), len(columns))
    if full:
        scores[:, :full].addmm_(padded, columns[:full].T, beta=0)
    if full < len(columns):
        scores[:, full:] = (padded @ _padded(columns[full:]).T)[:, : len(columns) - full]
    return scores[: len(rows)]


def _padded(rows: Tensor) -> Tensor:
    size = _whole(len(rows))
    if size == len(rows):
        return rows
    padded = rows.new_zeros(size, rows.shape[1])
    padded[: len(rows)] = rows
    return padded


def _whole(number: int) -> int:
    return -(-number // MULTIPLE) * MULTIPLE
