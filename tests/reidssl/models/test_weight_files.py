"""Files that are damaged, dangerous or not models are refused with an error that says what they are."""

import io
import os
import pickle
import random

import pytest
import torch

from reidssl.models.exported import torch_bytes
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import build_vit
from reidssl.models.weights import model_bytes, read_state_dict

VIT = build_vit(VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8))


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


class Blocked:
    """As Harmful, but with a function that torch knows to be harmful and reports with another text."""

    def __reduce__(self):
        return (os.system, ("echo code ran",))


DANGEROUS = r"bad\.pth holds an object of \S*(print|system) and is refused as dangerous"

NOTHING = r"bad\.pth is neither a safetensors nor a torch file"
BAD_FILES = {
    "empty": (b"", NOTHING + ": it is empty"),
    "text": (b"not a model", NOTHING + ": fetch it again, or name another file"),
    "text-with-a-brace": (b"weights {1}", NOTHING + ": fetch it again"),
    "web-page": (b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", NOTHING + " but a web page"),
    "lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", NOTHING + " but a Git LFS pointer"),
    "gzip": (b"\x1f\x8b\x08\0\0\0", NOTHING + " but gzip data: unpack it"),
    "zeros": (bytes(64), NOTHING + " but 64 zero bytes"),
    "half-pickle": (b"\x80\x02}", NOTHING + " of plain tensors, or it is damaged"),
    "zip-stub": (torch_bytes({"a": torch.zeros(9)})[:40], NOTHING + " of plain tensors, or it is damaged"),
    "torch-code": (torch_bytes({"a": Harmful()}), r"bad\.pth holds an object of \S*print and is refused"),
    **{f"pickle-code-{protocol}": (pickle.dumps(Harmful(), protocol), DANGEROUS) for protocol in range(2, 6)},
    **{f"pickle-system-{protocol}": (pickle.dumps(Blocked(), protocol), DANGEROUS) for protocol in range(2, 6)},
    "torch-system": (torch_bytes({"a": Blocked()}), DANGEROUS),
    "cut": (model_bytes(VIT)[:-100], r"bad\.pth is a damaged safetensors file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_damaged_and_dangerous_files_are_refused(kind, tmp_path, capfd):
    data, words = BAD_FILES[kind]
    path = tmp_path / "bad.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read_state_dict(path)
    assert "code ran" not in capfd.readouterr().out


@pytest.mark.parametrize("legacy", [True, False])
def test_whatever_is_wrong_with_the_bytes_it_is_a_value_error(legacy):
    """With random bytes at the beginning, a file gives other values or a ValueError of this library, and no other error."""
    buffer, generator = io.BytesIO(), random.Random(0)
    torch.save(VIT.state_dict(), buffer, _use_new_zipfile_serialization=not legacy)
    refused = 0
    for _ in range(200):
        data = bytearray(buffer.getvalue())
        for _ in range(3):
            data[generator.randrange(600)] = generator.randrange(256)
        try:
            read_state_dict(bytes(data))
        except ValueError as error:
            assert str(error).startswith("the checkpoint ")
            refused += 1
    assert refused > 20


def test_an_object_in_the_file_is_named():
    with pytest.raises(ValueError, match=r"^the checkpoint holds an object of \S*print and is refused"):
        read_state_dict(torch_bytes({"state_dict": {"a": torch.zeros(1)}, "hook": Harmful()}))


@pytest.mark.parametrize("content", [{}, [1], {"epoch": 3}, {"a.b": torch.zeros(1), "module.a.b": torch.zeros(1)}])
def test_files_without_one_state_dict_are_refused(content):
    with pytest.raises(ValueError, match=r"no state dict|twice"):
        read_state_dict(torch_bytes(content))
