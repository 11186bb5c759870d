"""The command `reidssl <program> [group=choice ...] [key=value ...]`, the same as `python -m platform.<program>` in a checkout.

The programs are a package named `platform`, like a module of the standard library. So they run in a Python that finds their
folder first. This module only starts that Python.
"""

import os
import sys
from pathlib import Path


def programs_folder() -> Path:
    """The folder that holds `platform/` and `configs/`: `reidssl_programs` beside the installed library, or the checkout."""
    beside = Path(__file__).resolve().parents[1]
    installed = beside / "reidssl_programs"
    return installed if installed.is_dir() else beside


def main() -> None:
    """Become `python -m platform.<program>`; without a program, list them. Exit status 2 for a program that does not exist."""
    folder, arguments = programs_folder(), sys.argv[1:]
    names = sorted(path.stem for path in (folder / "platform").glob("[!_]*.py"))
    name = arguments[0] if arguments else ""
    if name in ("", "-h", "--help", "help"):
        module = "platform"
    elif name in names:
        module = f"platform.{name}"
    else:
        print(f"error: there is no program '{name}'; programs: {', '.join(names) or 'none are installed'}", file=sys.stderr)
        sys.exit(2)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "REIDSSL_COMMAND": "reidssl"}
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments[1:]], environment)


if __name__ == "__main__":
    main()
