"""The programs of the platform, in a package that has the name of a standard-library module.

`python -m platform.pretrain` is the required entry point, so this package must also behave as the standard library's
`platform`: uuid, torch, ray and many other modules import that. The source of the standard module is therefore executed
in this namespace, which defines all its names with their own globals and caches. The programs are submodules of this
package.

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
    """Exception hook that prints one line for Ctrl-C while `python -m platform.<program>` imports its libraries.

    The imports take seconds. After them, `run_program` prints this line.
    """
    own = _os.path.dirname(_os.path.abspath(_sys.argv[0])) == _os.path.dirname(_os.path.abspath(__file__))
    if own and issubclass(kind, KeyboardInterrupt):
        print("interrupted; run the same command again to continue", file=_sys.stderr)
    else:
        _sys.__excepthook__(kind, error, trace)


if getattr(_sys, "argv", [""])[:1] == ["-m"] and _sys.excepthook is _sys.__excepthook__:  # `python -m` is still looking for it
    _sys.excepthook = _one_line_for_an_interrupt
