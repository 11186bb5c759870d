"""The head of a Ray cluster of its own, on this machine, with its own ports and folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class Head:
    """A running head node, and the environment in which commands use it."""

    environment: dict[str, str]
    address: str
    """host:port for drivers."""
    pid: int
    """Process of `ray start`, whose descendants are Ray's processes, those of nodes that it adds included."""

    def ray(self, *arguments: str, timeout: int = 540, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray, again for a while if Ray says to try later: it takes jobs only when its agent has started."""
        deadline = time.monotonic() + 90
        while True:
            found = self.run(str(RAY), *arguments, timeout=timeout, **environment)
            if "No available agent to submit job" not in found.stdout or time.monotonic() > deadline:
                return found
            time.sleep(2)

    def run(self, *command: str, timeout: int = 540, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | environment,
            text=True,
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@contextlib.contextmanager
def short_folder(prefix: str) -> Iterator[Path]:
    """Context manager: a temporary folder with a short path, because the paths of Ray's sockets below it are limited."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a process that ends may still write


@contextlib.contextmanager
def head_node(folder: Path, port: int, *options: str, **environment: str) -> Iterator[Head]:
    """Context manager: `ray start --head` until its jobs can be listed; at the end only its own processes are ended.

    folder: of Ray's files, a `short_folder`. The cluster has a token, as in the recipes.
    """
    dashboard, client, agent = free_ports(3)
    (folder / "token").write_text("a" * 64)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **inherited,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "OMP_NUM_THREADS": "1",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        **environment,
    }
    command = [
        str(RAY),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        f"--temp-dir={folder}",
        f"--object-store-memory={200 << 20}",
        "--disable-usage-stats",
        *options,
    ]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        running = Head(environment, f"127.0.0.1:{port}", head.pid)
        deadline = time.monotonic() + 90
        while running.ray("job", "list").returncode:
            assert head.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(1)
        yield running
    finally:
        family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for signal_of in (psutil.Process.terminate, psutil.Process.kill):
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    signal_of(process)
            psutil.wait_procs(family, timeout=5)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
