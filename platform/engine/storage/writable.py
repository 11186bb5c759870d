"""Whether files can be written below a folder, found out by writing one. Permissions alone do not tell: root has them all."""

import errno
import os
import uuid
from contextlib import suppress

PROBE = b"\0" * 65536  # a full disk still takes an empty file


def probe_folder(path: str) -> None:
    """Make the folder `path` if need be, write a file into it, and take away what was made; nothing else is touched.

    Raises NotADirectoryError naming what is in the way, at any level of the path, and OSError for any other trouble.
    """
    obstacle = _obstacle(path)
    if obstacle:
        kind = "a link that leads nowhere" if os.path.islink(obstacle) and not os.path.exists(obstacle) else "a file"
        raise NotADirectoryError(errno.ENOTDIR, f"{'it' if obstacle == path else obstacle} is {kind}, a folder is needed")
    made: list[str] = []
    try:
        _make_folders(path, made)
        file = os.path.join(path, f".probe.{uuid.uuid4().hex[:12]}.partial")
        try:
            with open(file, "xb") as opened:
                opened.write(PROBE)
                opened.flush()
                os.fsync(opened.fileno())
        except FileNotFoundError as error:  # e.g. /proc/self
            raise OSError(errno.EROFS, f"{path} takes no new files ({error.strerror})") from None
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file)
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # somebody else has put something there meanwhile
                os.rmdir(folder)


def _obstacle(path: str) -> str:
    """The first part of the path that is there and is no folder; "" if there is none."""
    parts = [path]
    while os.path.dirname(parts[-1]) != parts[-1]:
        parts.append(os.path.dirname(parts[-1]))
    return next((part for part in reversed(parts) if os.path.lexists(part) and not os.path.isdir(part)), "")


def _make_folders(path: str, made: list[str]) -> None:
    """Like os.makedirs, noting what was made; a parent that another process takes away meanwhile is made again."""
    if os.path.isdir(path):
        return
    _make_folders(os.path.dirname(path), made)
    for last in (False, True):
        try:
            os.mkdir(path)
            made.append(path)
            return
        except FileExistsError:
            return
        except FileNotFoundError as error:
            if last or os.path.isdir(os.path.dirname(path)):  # e.g. /proc, which has no place for it
                raise OSError(errno.EROFS, f"{os.path.dirname(path)} takes no new folders ({error.strerror})") from None
            _make_folders(os.path.dirname(path), made)
