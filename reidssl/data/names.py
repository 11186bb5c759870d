r"""Escaping of file names that are not valid Unicode, so that they can be stored as text.

Names in a file system, a tar archive or a key list may contain bytes that are not UTF-8. Python represents these bytes as lone
surrogates, which neither Arrow nor a terminal accepts. Such a name is written with `\xNN` for each byte that is not UTF-8,
`\uNNNN` for any other lone surrogate, and `\\` for a backslash. A name that looks like an escaped name is escaped as well. All
other names are unchanged. Different names have different escaped forms, and `unspelled` restores the name.
"""

import re

_MISTAKABLE = re.compile(r"\\(?:\\|x[0-9a-f]{2}|u[0-9a-f]{4})")
_TO_ESCAPE = re.compile("[\\\\\ud800-\udfff]")


def spelled(name: str) -> str:
    """The escaped form of a name from `os.fsdecode` or `bytes.decode("utf-8", "surrogateescape")`."""
    if name.isascii() and "\\" not in name:  # nearly all names
        return name
    try:
        name.encode()
        if not _MISTAKABLE.search(name):
            return name
    except UnicodeEncodeError:
        pass
    return _TO_ESCAPE.sub(_escape, name)


def unspelled(text: str) -> str:
    """The original name of an escaped name; the inverse of `spelled`."""
    return _MISTAKABLE.sub(_unescape, text) if "\\" in text else text


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\\":
        return "\\\\"
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _unescape(match: re.Match[str]) -> str:
    kind, digits = match[0][1], match[0][2:]
    if kind == "\\":
        return "\\"
    return chr(0xDC00 + int(digits, 16)) if kind == "x" else chr(int(digits, 16))
