"""The programs of the platform, living in a folder with the name of a standard-library module.

`python -m platform.pretrain` is the promised entry point, so this package must also *be* the standard library's
`platform`: uuid, torch, ray and many others import it for the real thing. The source of the standard module is
therefore executed in this namespace, which gives every name with its own globals and caches, and the programs
are submodules beside it.

`python -m platform` lists the programs.
"""

import os as _os
import sys as _sys
import sysconfig as _sysconfig

_standard_source = _os.path.join(_sysconfig.get_path("stdlib"), "platform.py")
with open(_standard_source, encoding="utf-8") as _file:
    exec(compile(_file.read(), _standard_source, "exec"), globals())
del _file


def _one_line_for_an_interrupt(kind, error, trace):
    """Ctrl-C while `python -m platform.<program>` imports its libraries, which takes seconds; later `run_program` says it."""
    own = _os.path.dirname(_os.path.abspath(_sys.argv[0])) == _os.path.dirname(_os.path.abspath(__file__))
    if own and issubclass(kind, KeyboardInterrupt):
        print("interrupted; run the same command again to continue", file=_sys.stderr)
    else:
        _sys.__excepthook__(kind, error, trace)


if getattr(_sys, "argv", [""])[:1] == ["-m"] and _sys.excepthook is _sys.__excepthook__:  # `python -m` looks for the program
    _sys.excepthook = _one_line_for_an_interrupt
