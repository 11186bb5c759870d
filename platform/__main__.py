"""`python -m platform`: the table of programs."""

import ast
import pathlib
import signal

FOLDER = pathlib.Path(__file__).parent
ORDER = ("pipeline", "ingest", "pretrain", "score", "select", "finetune", "cluster", "tune", "evaluate", "export", "report")


def programs() -> dict[str, str]:
    """Program name -> first line of its docstring, read without importing anything heavy."""
    found = {}
    for path in sorted(FOLDER.glob("[!_]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = docstring.splitlines()[0] if docstring else ""
    return dict(sorted(found.items(), key=lambda item: (ORDER + (item[0],)).index(item[0])))


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough
    print("Programs (each has --help):\n")
    for name, summary in programs().items():
        print(f"  python -m platform.{name:<10} {summary}")


if __name__ == "__main__":
    main()
