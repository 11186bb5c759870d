"""Hosts with addresses of their own on this machine: network namespaces around a switch whose links can fail.

It needs root and iproute2. The hosts share the file system, like machines with a network file system, and Ray's nodes on them
have no other way to each other than the switch.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.platform.head_node import RAY, ROOT

INTERFACE, PORT = "eth0", 6379


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts:
    """`count` hosts and the switch between them. Host 0 is the head of the Ray cluster, the others are its nodes."""

    WORKER_CPUS = 3

    def __init__(self, count: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rh"))  # short: the paths of Ray's sockets below it are limited
        self.name, self.count = f"rh{os.getpid()}", count
        self.switch: subprocess.Popen[str] | None = None
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        (self.folder / "token").write_text("a" * 64)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = inherited | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "40",
            "RAY_raylet_start_wait_time_s": "120",  # three nodes start on the cores of one machine
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": INTERFACE,  # the name of this machine is no address of the hosts
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        }

    def open(self) -> None:
        """Make the network and start Ray on all hosts."""
        ip("netns", "add", f"{self.name}s")
        for host in range(self.count):
            ip("netns", "add", f"{self.name}h{host}")
            ends = ["type", "veth", "peer", "name", f"p{host}", "netns", f"{self.name}s"]
            ip("link", "add", INTERFACE, "netns", f"{self.name}h{host}", *ends)
            ip("-n", f"{self.name}h{host}", "address", "add", f"{self.address(host)}/24", "dev", INTERFACE)
            for link in ("lo", INTERFACE):
                ip("-n", f"{self.name}h{host}", "link", "set", link, "up")
            ip("-n", f"{self.name}h{host}", "route", "add", "default", "dev", INTERFACE)  # Ray asks it for its own address
            ip("-n", f"{self.name}s", "link", "set", f"p{host}", "up")
            offload = f"from tests.platform.switch import without_offload; without_offload({INTERFACE!r})"
            subprocess.run([*self.on(host), sys.executable, "-c", offload], cwd=ROOT, check=True)
        ports = [f"p{host}" for host in range(self.count)]
        command = ["ip", "netns", "exec", f"{self.name}s", sys.executable, "-m", "tests.platform.switch", *ports]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.switch = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)  # type: ignore[call-overload]
        assert self.switch is not None and self.switch.stdout is not None and self.switch.stdout.readline() == "ready\n"
        for host in range(self.count):
            self.start_node(host)

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.0.{host + 1}"

    def on(self, host: int) -> list[str]:
        """The beginning of a command that runs on a host."""
        return ["ip", "netns", "exec", f"{self.name}h{host}"]

    @property
    def overrides(self) -> list[str]:
        return [f"runtime.address={self.address(0)}:{PORT}"]

    def link(self, host: int, up: bool = True, delay_s: float = 0.0, loss: float = 0.0) -> None:
        """Change the link of a host."""
        assert self.switch is not None and self.switch.stdin is not None
        self.switch.stdin.write(json.dumps({"port": host, "up": up, "delay_s": delay_s, "loss": loss}) + "\n")
        self.switch.stdin.flush()

    def start_node(self, host: int) -> None:
        """Start Ray on a host and wait until the cluster has it."""
        own = ["--head", f"--port={PORT}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        joined = [f"--address={self.address(0)}:{PORT}", f"--num-cpus={self.WORKER_CPUS}"]
        common = [
            f"--node-ip-address={self.address(host)}",
            "--object-store-memory=150000000",
            "--block",
            "--disable-usage-stats",
        ]
        command = [*self.on(host), str(RAY), "start", *(joined if host else own), *common]
        with (self.folder / f"host{host}.log").open("ab") as log:
            self.nodes[host] = subprocess.Popen(
                command, env=self.environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.wait_until(lambda: self.address(host) in self.alive(), f"{host} is no node of the cluster")

    def alive(self) -> list[str]:
        """Addresses of the nodes that Ray takes for alive."""
        program = (
            f"import ray; ray.init(address='{self.address(0)}:{PORT}', log_to_driver=False, logging_level='ERROR'); "
            "print(*(node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']))"
        )
        found = subprocess.run(
            [*self.on(0), sys.executable, "-c", program], env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        return found.stdout.split() if not found.returncode else []

    def wait_until(self, condition, complaint: str, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not condition():
            logs = "\n".join(file.read_text() for file in sorted(self.folder.glob("host*.log")))
            assert time.monotonic() < until, f"{complaint}\n{logs[-4000:]}"
            time.sleep(1)

    def repair(self, host: int) -> None:
        """Bring a link up again and start the host's node anew."""
        self.link(host)
        self.end_node(host)
        self.start_node(host)

    def repair_all(self) -> None:
        """Bring all links up, and the nodes that Ray has given up."""
        for host in range(self.count):
            self.link(host)
        alive = self.alive()
        for host in range(1, self.count):
            if self.address(host) not in alive:
                self.repair(host)

    def runs(self, host: int, name: str) -> bool:
        """Whether a process of Ray with this in its name runs on a host."""
        for process in psutil.Process(self.nodes[host].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    return True
        return False

    def end_node(self, host: int) -> None:
        node = self.nodes.pop(host, None)
        if node is not None:
            end(node.pid)
            node.wait()

    def close(self) -> None:
        for host in sorted(self.nodes, reverse=True):
            self.end_node(host)
        if self.switch is not None:
            assert self.switch.stdin is not None
            self.switch.stdin.close()
            self.switch.wait(20)
        for name in (f"{self.name}s", *(f"{self.name}h{host}" for host in range(self.count))):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def end(pid: int) -> None:
    """Kill a process and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=20)


def why_not() -> str:
    """Why this machine cannot have such hosts; "" if it can."""
    if os.geteuid():
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need iproute2 (the command ip)"
    tried = subprocess.run(["ip", "netns", "add", f"rh{os.getpid()}t"], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces are not allowed here: {tried.stderr.strip()}"
    ip("netns", "delete", f"rh{os.getpid()}t")
    return ""


@contextlib.contextmanager
def running_hosts(count: int) -> Iterator[Hosts]:
    """Context manager: hosts with Ray on all of them; skips the test where there can be none."""
    if reason := why_not():
        pytest.skip(reason)
    hosts = Hosts(count)
    try:
        hosts.open()
        yield hosts
    finally:
        hosts.close()
