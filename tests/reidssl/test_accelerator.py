"""What compiling for a GPU needs of a machine."""

import shutil
import sysconfig

import pytest

from reidssl.accelerator import can_build


@pytest.mark.parametrize(
    ("found", "given", "headers", "expected"),
    [
        ("gcc", "", True, True),
        ("clang", "", True, True),
        ("", "/opt/cc", True, True),
        ("", "", True, False),
        ("gcc", "", False, False),
    ],
)
def test_triton_needs_a_compiler_and_headers(monkeypatch, tmp_path, found, given, headers, expected):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == found else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CC", given)
    if headers:
        (tmp_path / "Python.h").touch()
    assert can_build() == expected
