"""Programs in processes of their own, as a user starts them, and their sudden end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def start(program: str, overrides: list[str], log) -> subprocess.Popen:
    """Start the command as a user types it, in its own process group. log: open file for its output."""
    return subprocess.Popen(
        [sys.executable, "-m", f"platform.{program}", *overrides, "runtime.object_store_gib=0.2"],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""},
    )


def kill(process: subprocess.Popen) -> None:
    """Kill the process and its Ray at once."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for member in family:
        if member.is_running():
            member.kill()
    psutil.wait_procs(family, timeout=30)
