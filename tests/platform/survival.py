"""Helpers of the failure tests: nodes that join and leave, the program as a user starts it, a faulty S3, a small disk.

The lines of a driver are stored with their time, so that a test can report how many steps a failure cost and how long it
took until training continued.
"""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from platform.engine.runs.metrics import read_metrics
from platform.engine.storage.location import open_storage
from tests.platform.curve_worker import BATCH, TINY

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A program in a process group of its own, whose lines are stored with their time.

    environment: other than that of this process, as for a cluster with a token. on: beginning of the command, to run elsewhere.
    """

    def __init__(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None, on: Sequence[str] = ()
    ) -> None:
        alone = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "40"}
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            [*on, sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment or os.environ | alone,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def wait_for(self, pattern: str, timeout_s: float = 150, after: float = 0.0) -> tuple[float, re.Match[str]]:
        """(time, match) of the first matching line after the time `after`; waits for it."""
        deadline = time.monotonic() + timeout_s
        while True:
            for when, line in list(self.lines):
                found = re.search(pattern, line)
                if found and when > after:
                    return when, found
            ended = self.process.poll() is not None and not self._reader.is_alive()
            assert not ended and time.monotonic() < deadline, f"no line matches {pattern!r}:\n{self.text[-6000:]}"
            time.sleep(0.05)

    def wait(self, timeout_s: float = 240) -> int:
        """Wait for the end; returns the exit status."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout=30)
        return code

    def kill(self) -> None:
        """Kill the driver and the processes that it started; a cluster that it only uses keeps running."""
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=20)
        self.process.wait(30)


class Driver(Process):
    """A paced `python -m platform.pretrain ...` with the tiny configuration of curve_worker."""

    def __init__(self, data: str, output: Path | str, steps: int, audit: Path, *overrides: str, **process: Any) -> None:
        self.output, self.audit, self.steps = output, audit, steps
        super().__init__(
            "tests.platform.paced_pretrain",
            f"data.uri={data}",
            f"output={output}",
            *TINY,
            f"length.samples={steps * BATCH}",
            f"tracking.audit={audit}",
            "scaling.threads=1",
            "scaling.max_failures=3",
            *overrides,
            **process,
        )

    def newest_step(self) -> int:
        return max((int(found.group(1)) for _, line in list(self.lines) if (found := re.search(r"step (\d+)/", line))), default=0)

    def continued(self, after: float) -> tuple[int, int, float]:
        """(step at which training continued, workers, time of its first line) of the first restart after a moment."""
        when, found = self.wait_for(r"continuing from ([\d,]+) samples seen.* with (\d+) worker", after=after)
        first, _ = self.wait_for(r"\bstep \d+/", after=when)
        return int(found.group(1).replace(",", "")) // BATCH, int(found.group(2)), first


class Nodes:
    """A cluster on this machine: a head that reads and decodes, and worker nodes for one training worker each."""

    WORKER_CPUS = 3.0

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # Train's drain detection needs the agent that comes with the dashboard.
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0, "object_store_memory": 200 << 20},
        )
        self.workers: list[Any] = []

    @property
    def overrides(self) -> list[str]:
        return [f"runtime.address={self.cluster.address}", f"scaling.cpus_per_worker={self.WORKER_CPUS:g}"]

    def have(self, count: int) -> None:
        """Add or remove worker nodes until there are `count`."""
        while len(self.workers) < count:
            self.workers.append(self.cluster.add_node(num_cpus=int(self.WORKER_CPUS), object_store_memory=100 << 20))
        while len(self.workers) > count:
            self.remove(self.workers[-1])

    def remove(self, node: Any) -> None:
        """Remove a node at once, like a machine that loses power."""
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def training_process(self, node: Any) -> psutil.Process | None:
        """The process of the Ray Train worker on a node, or None."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in raylet.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    return process
        return None

    def wait_until_idle(self) -> None:
        """Wait until Ray has ended the workers of a killed driver, which until then continue and write checkpoints."""
        deadline = time.monotonic() + 60
        while any(self.training_process(node) for node in self.workers):
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def drain(self, node: Any, seconds: int) -> None:
        """Drain a node with the notice that cluster/drain_on_notice.py gives."""
        command = [
            str(Path(sys.executable).parent / "ray"),
            "drain-node",
            "--address",
            self.cluster.address,
            "--node-id",
            node.node_id,
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            str(seconds),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def close(self) -> None:
        self.cluster.shutdown()


class FaultyProxy:
    """An HTTP proxy before an S3 server.

    `mode` is "" (pass on), "error" (503), "once" (503 for the first write of each object), "hang" (no answer) or "slow" (1 s a
    request).
    """

    def __init__(self, endpoint: str) -> None:
        host = endpoint.removeprefix("http://")
        self.mode, self.requests, self.faults = "", 0, 0
        self.refused: set[str] = set()
        """Paths of the objects whose first write was refused in mode "once"."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                mode = proxy.mode
                proxy.faults += bool(mode)
                if mode == "hang":
                    until = time.monotonic() + 30
                    while proxy.mode == "hang" and time.monotonic() < until:
                        time.sleep(0.1)
                    self.close_connection = True
                    return
                if mode == "slow":
                    time.sleep(1.0)
                refuse = mode == "once" and self.command == "PUT" and self.path not in proxy.refused
                if refuse:
                    proxy.refused.add(self.path)
                if mode == "error" or refuse:
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                onward = http.client.HTTPConnection(host, timeout=60)
                onward.request(self.command, self.path, body, dict(self.headers))
                answer = onward.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                onward.close()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.mode = ""
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of the given size; skips the test without the right to mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system could not be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def losses(output: Path | str, storage: Any = None) -> dict[int, float]:
    return {row["position"]: row["loss"] for row in read_metrics(open_storage(str(output), storage))}
