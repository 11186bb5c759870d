"""Read one file from start to end through a library that asks for small pieces: tarfile, PyAV.

On object storage every piece would be a request of its own (tarfile asks for 10 KiB), and a single failed request would look
like a damaged file. So larger pieces are read ahead, and a failed request is retried.
"""

import io
from typing import IO, Any

import pyarrow as pa

from platform.engine.storage.location import Location
from platform.engine.storage.retry import patiently

PIECE_BYTES = 8 << 20


def open_patiently(location: Location) -> IO[bytes]:
    """Open a file for reading and seeking; requests of PIECE_BYTES, retried for `storage.retry_timeout_s` seconds.

    Raises StorageError, then and while reading.
    """
    file = patiently(location.open_input, location.config.retry_timeout_s)
    return io.BufferedReader(_PatientInput(location, file), PIECE_BYTES)


class _PatientInput(io.RawIOBase):
    """Unbuffered reads at a position of `file`, which is that of `location`."""

    def __init__(self, location: Location, file: pa.NativeFile) -> None:
        super().__init__()
        self._location, self._file, self._size, self._at = location, file, file.size(), 0

    @property
    def name(self) -> str:
        return self._location.uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative position {start + offset} in {self._location.uri}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = patiently(lambda: self._read(wanted), self._location.config.retry_timeout_s)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        with self._location.errors("read"):
            found: bytes = self._file.read_at(size, self._at)
        return found

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
