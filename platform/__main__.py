"""`python -m platform`: prints the table of programs."""

import ast
import os
import pathlib
import signal

FOLDER = pathlib.Path(__file__).parent
PREFIX = "reidssl " if os.environ.get("REIDSSL_COMMAND") else "python -m platform."  # as the user types it
ORDER = ("pipeline", "ingest", "pretrain", "score", "select", "finetune", "cluster", "tune", "evaluate", "export", "report")


def programs() -> dict[str, str]:
    """Program name -> first line of its docstring, read without importing the programs; in the order of `ORDER`."""
    found = {}
    for path in sorted(FOLDER.glob("[!_]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = docstring.splitlines()[0] if docstring else ""
    return dict(sorted(found.items(), key=lambda item: (ORDER + (item[0],)).index(item[0])))


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when a reader such as `head` closes the pipe
    print("Programs (each has --help):\n")
    for name, summary in programs().items():
        print(f"  {PREFIX}{name:<10} {summary}")


if __name__ == "__main__":
    main()
