"""Matrix products in which each entry depends only on its two rows, so that equal pairs have equal scores at any position.

A BLAS computes the last few rows and columns of a product with other kernels, which round differently. Two copies of an image
could then have different cosines with a third image, and the order of ties would depend on the blocks. Operands whose number of
rows is a multiple of 64 have no such remainder.
"""

from torch import Tensor

from reidssl.precision import no_autocast

MULTIPLE = 64


def products_buffer(like: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """A buffer for `products` of up to `num_rows` rows and `num_columns` columns.

    Buffers are reused, because allocating a large array costs more time than the product.
    """
    return like.new_empty(_whole(num_rows) * num_columns)


def products(rows: Tensor, columns: Tensor, buffer: Tensor) -> Tensor:
    """rows @ columns.T: float32 (b, c), contiguous in `buffer`.

    Operands are padded with zeros to a multiple of 64 rows. All rows of `rows`, but only the remainder of `columns`, are copied.
    On a GPU the products are exact even in a process that allows TF32 for its model.

    Args:
        rows, columns: float32 (b, D) and (c, D) on one device.
        buffer: from `products_buffer`; overwritten.
    """
    padded, full = _padded(rows), len(columns) - len(columns) % MULTIPLE
    scores = buffer[: len(padded) * len(columns)].view(len(padded), len(columns))
    with no_autocast(rows):
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
