"""Every check: the values that it accepts and refuses, and its message."""

import math
import re
import subprocess
import sys

import pytest

from reidssl.checks import (
    at_least,
    channel_statistics,
    height_and_width,
    height_and_width_or_empty,
    increasing,
    one_of,
    positive,
    within,
)


@pytest.mark.parametrize(
    "check",
    [
        lambda: at_least(1, a=1, b=10**12),
        lambda: at_least(0, "(all)", a=0.0),
        lambda: at_least(-1, a=-1),
        lambda: positive(a=1e-300, b=1),
        lambda: within("[0, 1)", a=0, b=0.999),
        lambda: within("(0, 1]", a=1e-9, b=1),
        lambda: within("(0, inf)", a=1e300),
        lambda: within("[1, 178956970]", a=178956970),
        lambda: one_of(("x", "y"), a="x", b="y"),
        lambda: one_of((0, 1), a=1),
        lambda: increasing("(0, 1]", a=(0.5, 0.5), b=[0.1, 1]),
        lambda: height_and_width(a=(1, 1), b=[256, 128]),
        lambda: height_and_width_or_empty(a=[], b=[256, 128]),
        lambda: channel_statistics([0.0, 0.0, 0.0], [1.0, 1.0, 1e-3]),
    ],
)
def test_what_is_allowed_passes(check):
    check()


@pytest.mark.parametrize(
    "check, message",
    [
        (lambda: at_least(1, first=1, second=0), "second must be at least 1: got 0"),
        (lambda: at_least(1, "query", a=0), "a must be at least 1 query: got 0"),
        (lambda: at_least(0, a=-0.5), "a must be 0 or more: got -0.5"),
        (lambda: at_least(0, "(all)", a=-1), "a must be 0 (all) or more: got -1"),
        (lambda: at_least(-1, "(no limit)", a=-2), "a must be -1 (no limit) or more: got -2"),
        (lambda: positive(a=0), "a must be positive: got 0"),
        (lambda: within("[0, 1)", a=1.0), "a must be in [0, 1): got 1.0"),
        (lambda: within("(0, 1]", a=0), "a must be in (0, 1]: got 0"),
        (lambda: within("(0, 1)", a=1), "a must be in (0, 1): got 1"),
        (lambda: within("[1, 100]", a=101), "a must be in [1, 100]: got 101"),
        (lambda: one_of(("x", "y"), a="z"), "a must be one of x, y: got 'z'"),
        (lambda: one_of((0, 1), a=2), "a must be one of 0, 1: got 2"),
        (lambda: increasing("(0, 1]", a=[0.5, 0.25]), "a must be an increasing pair within (0, 1]: got (0.5, 0.25)"),
        (lambda: increasing("(0, 1]", a=(0, 1)), "a must be an increasing pair within (0, 1]: got (0, 1)"),
        (lambda: increasing("(0, 1]", a=[0.5]), "a must be an increasing pair within (0, 1]: got (0.5,)"),
        (lambda: height_and_width(a=[256]), "a must be (height, width), both at least 1: got (256,)"),
        (lambda: height_and_width(a=(0, 1)), "a must be (height, width), both at least 1: got (0, 1)"),
        (lambda: height_and_width_or_empty(a=[64]), "a must be [height, width] or []: got [64]"),
        (lambda: channel_statistics([0.5], [1.0, 1.0, 1.0]), "mean must have one value for each of the 3 channels: got [0.5]"),
        (
            lambda: channel_statistics([0.5] * 3, [1.0, 0.0, 1.0]),
            "std must have one positive value for each of the 3 channels: got [1.0, 0.0, 1.0]",
        ),
    ],
)
def test_what_is_not_is_refused_with_its_name_and_value(check, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check()


@pytest.mark.parametrize(
    "check",
    [
        lambda: at_least(0, a=math.nan),
        lambda: positive(a=math.nan),
        lambda: within("[0, 1]", a=math.nan),
        lambda: increasing("[0, 1]", a=(0.0, math.nan)),
        lambda: channel_statistics([0.5] * 3, [math.nan, 1.0, 1.0]),
    ],
)
def test_nan_is_refused(check):
    with pytest.raises(ValueError, match="must"):
        check()


def test_settings_are_checked_without_torch_and_numpy():
    code = "import sys, reidssl.checks; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, text=True, capture_output=True).stdout == "[]\n"
