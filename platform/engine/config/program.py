"""The `__main__` of every program: help, overrides, and readable errors.

A program calls `run_program` in its first lines, before it imports anything heavy. Help, the resolved configuration and errors
on the command line need only the settings (platform/engine/schemas/).
"""

import ast
import importlib
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from omegaconf import OmegaConf

from platform.engine.config.compose import load_config, to_plain
from platform.engine.config.groups import ROOT
from platform.engine.config.help import help_text
from platform.engine.errors import UserError
from platform.engine.runs.owner import Claims
from platform.engine.runtime.terminal import say
from platform.engine.schemas import schema_of
from platform.engine.secrets import hidden, hide
from platform.engine.storage.first_answer import wait_for_silent_stores


def run_program(name: str) -> NoReturn:
    """Handle `--help` and `--show-config`, or run `platform.<name>.main(config)`. Then it ends the process.

    The module is imported under its own name, because objects that are pickled to Ray workers must not belong to `__main__`,
    which the workers do not have.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments = sys.argv[1:]
    schema, flags = schema_of(name), {"-h", "--help", "--show-config"}
    overrides = [argument for argument in arguments if argument not in flags]
    try:
        if {"-h", "--help"} & set(arguments):
            print_text(help_text(schema, name, docstring(name), overrides))
        elif "--show-config" in arguments:
            print_text(OmegaConf.to_yaml(OmegaConf.create(hidden(to_plain(load_config(schema, name, overrides))))))
        else:
            config = load_config(schema, name, overrides)
            wait_for_silent_stores(say)
            with Claims():
                importlib.import_module(f"platform.{name}").main(config)
    except UserError as error:
        print(as_typed(hide(f"error: {error}" if error.status == 2 else str(error))), file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader has closed the pipe; the rest of Python's buffer would raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception:  # a bug, or a fault of the machine; printed here only because other libraries' texts may hold secrets
        print(hide(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def print_text(text: str) -> None:
    """Print the whole output of a process. Like `cat`, it ends quietly if the reader (e.g. `head`) closes the pipe."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdout.write(as_typed(text).rstrip("\n") + "\n")
    sys.stdout.flush()


def as_typed(text: str) -> str:
    """The text with the commands in it as the user types them: `reidssl ingest` for `python -m platform.ingest` if installed."""
    command = os.environ.get("REIDSSL_COMMAND")
    return text.replace("python -m platform.", f"{command} ") if command else text


def docstring(name: str) -> str:
    """The docstring of a program, read without importing it."""
    text = Path(ROOT, "platform", f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)) or ""
