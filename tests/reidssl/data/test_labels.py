import pytest

from reidssl.data.labels import numbered, shown, split_name, whole_number
from reidssl.data.records import LayoutError, LayoutWarning


@pytest.mark.parametrize(
    ("value", "number"), [(7, 7), (-1, -1), (0, 0), (2**31 - 1, 2**31 - 1), ("7", 7), ("0007", 7), ("-1", -1)]
)
def test_whole_numbers(value, number):
    assert whole_number(value) == number


@pytest.mark.parametrize(
    "value",
    [
        1.7,
        7.0,
        1e3,
        True,
        False,
        None,
        float("inf"),
        float("nan"),
        [7],
        {"a": 7},
        " 7 ",
        "",
        "7.0",
        "+7",
        "-7",
        "1_0",
        "٣",
        "0x7",
        -2,
        2**31,
        20230101123456,
        "20230101123456",
        "9" * 5000,
        2**300,
    ],
)
def test_everything_else_is_refused_with_the_value_seen(value):
    with pytest.raises(ValueError) as caught:
        whole_number(value)
    assert str(caught.value).startswith(shown(value)) and len(str(caught.value)) < 120


def test_splits():
    assert [split_name(name) for name in ("train", "query", "gallery")] == ["train", "query", "gallery"]
    assert split_name("test", {"test": "gallery"}) == "gallery"
    for value in ("test", "Train", " train", "", 1, None, ["train"]):
        with pytest.raises(ValueError, match="is none of train, query, gallery"):
            split_name(value)


def test_numbers_for_names(recwarn):
    assert numbered(["7", "0012", "0"], "identities") == {"7": 7, "0012": 12, "0": 0} and not recwarn.list
    with pytest.warns(LayoutWarning, match="2 cameras are no whole numbers .*: 'north' is 0, 'south' is 2$"):
        assert numbered(["south", "1", "north", "south"], "cameras") == {"1": 1, "north": 0, "south": 2}
    with pytest.raises(LayoutError, match="two identities have the same number, '0007' and '7': rename"):
        numbered(["7", "0007"], "identities")
