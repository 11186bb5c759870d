"""Redirect the lines that Ray's C++ core prints on stderr to a file, so that the terminal only shows lines for the user.

Ray's core reports errors twice: in its log file (python-core-driver-*.log) and on file descriptor 2 of the driver. These
include errors that it recovers from and remarks about the start of actors. Here, Python's stderr gets its own descriptor, and
descriptor 2 becomes a file in the folder of Ray's logs, so that nothing is lost.
"""

import faulthandler
import io
import logging
import os
import sys

NAME = "driver-stderr"

_python_stderr: io.TextIOWrapper | None = None


def set_native_lines_aside(folder: str = "") -> None:
    """Redirect output to file descriptor 2 that does not come from Python to a file in `folder`.

    With folder "", the output is dropped until the folder is known. Does nothing if stderr is not descriptor 2 (in a test or
    notebook). A crash of the interpreter still shows on the terminal.
    """
    global _python_stderr
    if _python_stderr is None:
        before = sys.stderr
        try:
            if before is None or before.fileno() != 2:
                return
        except (OSError, ValueError):
            return
        before.flush()
        _python_stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=before.encoding, errors="backslashreplace")
        sys.stderr = _python_stderr
        for handler in _handlers():
            if handler.stream is before:
                handler.setStream(_python_stderr)
        faulthandler.enable(_python_stderr)
    path = os.path.join(folder, f"{NAME}-{os.getpid()}.log") if folder else os.devnull
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return  # the folder belongs to another user's Ray: keep the current target
    os.dup2(target, 2)
    os.close(target)


def _handlers() -> list[logging.StreamHandler]:
    known = [logging.root, *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger))]
    return [handler for one in known for handler in one.handlers if isinstance(handler, logging.StreamHandler)]
