"""Recognition of files that are not readable models, by their first bytes, and advice for the user."""

import io
import pickletools
import zipfile

_BEGINNINGS = (
    (
        b"version https://git-lfs",
        " but a Git LFS pointer, a few lines in the place of the file: run git lfs pull, or download the file itself",
    ),
    (b"<!doctype html", " but a web page (HTML), that around the download or its error message: fetch the file itself"),
    (b"<html", " but a web page (HTML), that around the download or its error message: fetch the file itself"),
    (b"<head", " but a web page (HTML), that around the download or its error message: fetch the file itself"),
    (b"<?xml", " but a web page (XML), that around the download or its error message: fetch the file itself"),
    (b"\x1f\x8b", " but gzip data: unpack it first"),
    (b"bzh", " but bzip2 data: unpack it first"),
    (b"\xfd7zxz", " but xz data: unpack it first"),
    (b"7z\xbc\xaf", " but a 7-Zip archive: unpack it first"),
    (b"rar!", " but a RAR archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", " but zstd data: unpack it first"),
    (b"\x93numpy", " but a NumPy array: name the checkpoint itself"),
    (b"\x89hdf", " but an HDF5 file (Keras, TensorFlow): save the weights from PyTorch with torch.save(model.state_dict(), ...)"),
    (b"gguf", " but a GGUF file (a quantized language model): name a vision transformer's checkpoint"),
    (b"\x89png", " but a picture (PNG): name the checkpoint"),
    (b"\xff\xd8\xff", " but a picture (JPEG): name the checkpoint"),
    (b"par1", " but a Parquet file: name the checkpoint"),
)


def what_instead(data: bytes) -> str:
    """What a file that is not a torch file is, and what to do, as the end of a message; "" if it is not recognized.

    Example: " but gzip data: unpack it first".
    """
    if not data:
        return ": it is empty"
    if not data.strip(b"\0"):
        return f" but {len(data)} zero bytes: a download that was not finished; fetch it again"
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, words in _BEGINNINGS:
        if start.startswith(beginning) or data[:16].lower().startswith(beginning):
            return words
    if data[:4] == b"PK\x03\x04":
        return _zip(data)
    if data[257:262] == b"ustar":
        return " but a tar archive: unpack it, and name the checkpoint in it"
    if data[4:8] == b"TFL3":
        return " but a TensorFlow Lite model: export the weights from PyTorch"
    if _is_onnx(data):
        return " but an ONNX graph, which cannot be trained or rebuilt here: name the checkpoint that it was exported from"
    if start.startswith((b"{", b"[")) and b'"' in start:
        return " but JSON text: name the file with the weights"
    if data[:1] in (b"c", b"(") and data.rstrip().endswith(b".") and b"\n" in data[:512]:
        return (
            " but an old pickle, which can run code and is refused as dangerous: save the weights alone with "
            "torch.save(model.state_dict(), ...)"
        )
    return ""


def foreign_object(data: bytes) -> str:
    """Name ("os.system") of the first object in a torch file or pickle that belongs to neither torch, NumPy nor OrderedDict.

    "" if there is none. The pickle is read as a list of instructions, and nothing of it is run.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data)) if data[:4] == b"PK\x03\x04" else None
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl"))) if archive else data
        rest, texts = io.BytesIO(pickled), ["", ""]
        while rest.tell() < len(pickled):  # files before torch 1.6 hold several pickles
            for instruction, argument, _ in pickletools.genops(rest):
                if instruction.name in ("GLOBAL", "INST"):
                    texts = str(argument).split(" ", 1)
                elif "UNICODE" in instruction.name or "STRING" in instruction.name:
                    texts = [texts[-1], str(argument)]
                if instruction.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                    name = ".".join(texts)
                    if not name.startswith(("torch.", "numpy.", "collections.OrderedDict")):
                        return name
    except (zipfile.BadZipFile, StopIteration, ValueError, NotImplementedError, OSError, IndexError):
        return ""
    return ""


def _zip(data: bytes) -> str:
    """What a zip archive is, as in `what_instead`; "" for a torch file.

    Archives of torch.save contain a data.pkl; those of TorchScript also contain code.
    """
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return ""
    parts = {part for name in names for part in name.split("/")[1:]}
    if "constants.pkl" in parts or "code" in parts:
        return (
            " of plain tensors but a TorchScript archive, which holds code: save the weights of the model it was made from, "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    if "data.pkl" in parts:
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return " but an archive of NumPy arrays (.npz): name the checkpoint itself"
    if any(name.endswith(".data-00000-of-00001") or name.endswith("saved_model.pb") for name in names):
        return " but a TensorFlow model: export the weights from PyTorch"
    return f" but a zip archive of {len(names)} files: unpack it, and name the checkpoint in it"


def _is_onnx(data: bytes) -> bool:
    """Whether the data begin like an ONNX ModelProto: ir_version (field 1, a small number), then producer, opset or graph."""
    return data[:1] == b"\x08" and len(data) > 2 and 0 < data[1] < 32 and data[2] in (0x12, 0x1A, 0x22, 0x32, 0x3A, 0x42)
