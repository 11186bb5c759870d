"""Open a tar of foreign origin as a stream, in bounded memory whatever is in it."""

import bz2
import lzma
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import IO, Any

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
DAMAGE = (tarfile.TarError, EOFError, zlib.error)
PIECE = 1 << 16  # compressed bytes
LARGEST_NAME = 1 << 20  # bytes of the headers that hold long names and further attributes
READ_WHOLE = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
XZ_MEMORY = 256 << 20  # bytes that a decoder may need; `xz -9` needs 65 MiB

Unpacker = bz2.BZ2Decompressor | lzma.LZMADecompressor


def open_tar(file: IO[bytes]) -> tarfile.TarFile:
    """The tar in a seekable file, compressed or not. Raises one of DAMAGE, then and while reading."""
    make = _unpacker(file.read(10))
    file.seek(0)
    # tarfile itself would unpack a few kB of bzip2 to gigabytes in memory; gzip grows by 1,000 at most.
    opened: Any = _Unpacked(file, make) if make else file
    mode: Any = "r|" if make else "r|*"
    return tarfile.open(fileobj=opened, mode=mode, tarinfo=_StrictInfo, encoding="utf-8", errors="surrogateescape")


def _unpacker(start: bytes) -> Callable[[], Unpacker] | None:
    """Makes the decoder of a file that begins so; None unless it is bzip2, xz or LZMA."""
    if start[:3] == b"BZh" and start[4:] == b"1AY&SY":
        return bz2.BZ2Decompressor
    if start.startswith((b"\xfd7zXZ", b"\x5d\0\0\x80")):
        return partial(lzma.LZMADecompressor, memlimit=XZ_MEMORY)
    return None


class _Unpacked:
    """The content of a compressed file, which may be several compressed streams one after the other."""

    def __init__(self, file: IO[bytes], make: Callable[[], Unpacker]) -> None:
        self.file, self.make, self.unpacker = file, make, make()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end. Raises tarfile.ReadError for damage."""
        while True:
            data = b""
            if self.unpacker.eof:
                data = self.unpacker.unused_data.lstrip(b"\0")  # streams may be padded
                while not data:
                    piece = self.file.read(PIECE)
                    if not piece:
                        return b""
                    data = piece.lstrip(b"\0")
                self.unpacker = self.make()
            elif self.unpacker.needs_input:
                data = self.file.read(PIECE)
                if not data:
                    raise tarfile.ReadError("the compressed data is cut off")
            try:
                found = self.unpacker.decompress(data, size)
            except (OSError, ValueError, lzma.LZMAError) as error:
                raise tarfile.ReadError(f"the compressed data cannot be read: {error}") from None
            if found:
                return found


class _StrictInfo(tarfile.TarInfo):
    """Header that raises ReadError if it is damaged or missing. tarfile would take both for the regular end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictInfo":
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without the mark of an archive's end: it is empty or cut off") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictInfo":
        found = super().frombuf(buf, encoding, errors)
        if found.type in READ_WHOLE and found.size > LARGEST_NAME:
            raise tarfile.ReadError(f"a header of {found.size:,} bytes")
        return found


def without_suffix(name: str) -> str:
    """The name of a tar without the suffix that says so."""
    suffix = max((each for each in TAR_SUFFIXES if name.lower().endswith(each)), key=len, default="")
    return name[: len(name) - len(suffix)]
