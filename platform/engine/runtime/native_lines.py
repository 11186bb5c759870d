"""The terminal is for lines that somebody wrote for its reader: what Ray's C++ prints there goes to Ray's log files.

Ray's core reports errors twice, in its log file (python-core-driver-*.log) and on file descriptor 2 of the driver, also those
that it then mends, or that are a remark on how Ray Data starts its actors. Python's own stderr gets a descriptor of its own
here, and descriptor 2 becomes a file beside Ray's logs, so that nothing is lost.
"""

import faulthandler
import io
import logging
import os
import sys

NAME = "driver-stderr"

_python_stderr: io.TextIOWrapper | None = None


def set_native_lines_aside(folder: str = "") -> None:
    """Send what is written to file descriptor 2, but not by Python, to a file in `folder`; "" drops it until the folder is known.

    Does nothing where stderr is not descriptor 2 (a test, a notebook). A crash of the interpreter still shows on the terminal.
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
        return  # a folder of another user's Ray; what was there before stays
    os.dup2(target, 2)
    os.close(target)


def _handlers() -> list[logging.StreamHandler]:
    known = [logging.root, *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger))]
    return [handler for one in known for handler in one.handlers if isinstance(handler, logging.StreamHandler)]
