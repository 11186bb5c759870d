"""Validation of settings, with uniform error messages.

A check takes the allowed values first and then the fields by name. It raises ValueError for the first field with another value:

    at_least(1, width=self.width, depth=self.depth)     # depth must be at least 1: got 0
    within("[0, 1)", drop_path=self.drop_path)          # drop_path must be in [0, 1): got 1.5

The message begins with the name of the field, so that a caller can put the path of the field before it. NaN is never allowed.
Rules that compare several fields are not checks of this module; they are `if` statements in the class of the fields.
"""

from collections.abc import Sequence


def at_least(smallest: float, note: str = "", /, **values: float) -> None:
    """Every value is `smallest` or more. `note` is put after the number: "(all)" gives "must be 0 (all) or more"."""
    allowed = f"{smallest} {note}".rstrip()
    for name, value in values.items():
        if not value >= smallest:
            raise ValueError(f"{name} must be {f'at least {allowed}' if smallest >= 1 else f'{allowed} or more'}: got {value}")


def positive(**values: float) -> None:
    """Every value is above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive: got {value}")


def within(interval: str, /, **values: float) -> None:
    """Every value lies in an interval in mathematical notation: "[0, 1)" includes 0 and excludes 1."""
    for name, value in values.items():
        if not _lies_in(interval, value):
            raise ValueError(f"{name} must be in {interval}: got {value}")


def one_of(choices: Sequence[str] | Sequence[int], /, **values: str | int) -> None:
    """Every value is one of the choices."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}: got {value!r}")


def increasing(interval: str, /, **pairs: Sequence[float]) -> None:
    """Every pair is (low, high) with low <= high, both in the interval."""
    for name, pair in pairs.items():
        if len(pair) != 2 or not pair[0] <= pair[1] or not all(_lies_in(interval, value) for value in pair):
            raise ValueError(f"{name} must be an increasing pair within {interval}: got {tuple(pair)}")


def height_and_width(**sizes: Sequence[int]) -> None:
    """Every size is (height, width) of an image."""
    for name, size in sizes.items():
        if not _is_size(size):
            raise ValueError(f"{name} must be (height, width), both at least 1: got {tuple(size)}")


def height_and_width_or_empty(**sizes: Sequence[int]) -> None:
    """Every size is [height, width] of an image, or [] if none is given."""
    for name, size in sizes.items():
        if size and not _is_size(size):
            raise ValueError(f"{name} must be [height, width] or []: got {list(size)}")


def channel_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """The fields `mean` and `std` have one value for each of the three channels, and the values of `std` are positive."""
    if len(mean) != 3:
        raise ValueError(f"mean must have one value for each of the 3 channels: got {list(mean)}")
    if len(std) != 3 or not min(std) > 0:
        raise ValueError(f"std must have one positive value for each of the 3 channels: got {list(std)}")


def _lies_in(interval: str, value: float) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    return (low <= value if interval[0] == "[" else low < value) and (value <= high if interval[-1] == "]" else value < high)


def _is_size(size: Sequence[int]) -> bool:
    return len(size) == 2 and min(size) >= 1
