import itertools

import pytest

from reidssl.data.names import spelled, unspelled

PIECES = ["", "a", "\\", "\\\\", "\\x", "\\xe9", "xe9", "\\u", "dc80", "é", "e9", "\udce9", "\udc80", "\ud800", "\\x5c"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a/b c.jpg", "a/b c.jpg"),
        ("é.jpg", "é.jpg"),
        ("back\\slash.jpg", "back\\slash.jpg"),
        (b"latin\xe9.jpg".decode("utf-8", "surrogateescape"), "latin\\xe9.jpg"),
        ("latin\\xe9.jpg", "latin\\\\xe9.jpg"),
        (b"\xff\\\xfe".decode("utf-8", "surrogateescape"), "\\xff\\\\\\xfe"),
        ("\ud83d", "\\ud83d"),
    ],
)
def test_spelling(name, text):
    assert spelled(name) == text and unspelled(text) == name


def test_every_name_has_a_spelling_of_its_own_that_can_be_stored_and_undone():
    names = {"".join(parts) for parts in itertools.product(PIECES, repeat=3)}
    texts = {spelled(name) for name in names}
    assert len(texts) == len(names) and {unspelled(text) for text in texts} == names
    assert "".join(texts).encode()
