"""Check whether files can be written below a folder, by writing one. Permissions are not enough: root has all of them."""

import errno
import os
import uuid
from contextlib import suppress

PROBE = b"\0" * 65536  # not empty, because a full disk still accepts an empty file


def probe_folder(path: str) -> None:
    """Create the folder `path` if needed, write a file into it, and remove everything that was created.

    Raises NotADirectoryError if a component of the path is not a folder (the message names it), and OSError for other failures.
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
            with suppress(OSError):  # another process may have written into it meanwhile
                os.rmdir(folder)


def _obstacle(path: str) -> str:
    """The first component of the path that exists and is not a folder; "" if there is none."""
    parts = [path]
    while os.path.dirname(parts[-1]) != parts[-1]:
        parts.append(os.path.dirname(parts[-1]))
    return next((part for part in reversed(parts) if os.path.lexists(part) and not os.path.isdir(part)), "")


def _make_folders(path: str, made: list[str]) -> None:
    """As os.makedirs, but appends the created folders to `made`, and retries if another process removes a parent meanwhile."""
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
            if last or os.path.isdir(os.path.dirname(path)):  # e.g. /proc, where no folder can be created
                raise OSError(errno.EROFS, f"{os.path.dirname(path)} takes no new folders ({error.strerror})") from None
            _make_folders(os.path.dirname(path), made)
