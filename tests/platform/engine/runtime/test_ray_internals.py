"""The check of a cluster's address: each kind of wrong address gives one line within seconds."""

import ast
import importlib
import inspect
import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from platform.engine.errors import UserError
from platform.engine.runtime.ray_internals import check_cluster, draining_nodes, lean_start, log_folder

ROOT = Path(__file__).resolve().parents[4]
ALLOWED = [
    "platform/engine/runtime/ray_internals.py",
    "platform/engine/train/elastic.py",
    "platform/engine/train/trainer.py",
]


def private_names(code: str) -> list[str]:
    """Names that a module uses from Ray and that are not public."""
    named = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            named += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            named.append(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            named.append(node.value)  # names for importlib.import_module and patches
    named = [name for name in named if name.startswith("ray.")]
    return [name for name in named if name.startswith("ray.core.generated") or re.search(r"\._(?!_)", name)]


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.state",
        "from ray._private import worker",
        "import ray\nray._raylet.x",
        "from ray import _raylet as r",
        "from ray.train.v2._internal.util import y",
        "from ray.data._internal.plan import z",
        "from ray.core.generated import gcs_pb2",
        "import_module('ray._private.utils')",
    ],
)
def test_what_counts_as_private(code):
    assert private_names(code)
    assert not private_names("import ray\nimport ray.train.torch\nray.__version__\nfrom ray.data import Dataset\nself.ray._x\n")


def test_private_names_of_ray_are_taken_in_three_files_only():
    """And listed in another, which checks them."""
    files = [path for folder in ("platform", "reidssl", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    users = [str(path.relative_to(ROOT)) for path in files if private_names(path.read_text(encoding="utf-8"))]
    assert sorted({*users} - {"platform/engine/runtime/ray_names.py"}) == ALLOWED


@contextmanager
def listening(answer=None):
    """A port on loopback that accepts every connection and sends `answer`; without an answer it is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                taken.append(connection)
                if answer:
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


def refusal(address: str) -> str:
    """The error message for `address`; asserts that it is one line and comes within 12 seconds."""
    started = time.monotonic()
    with pytest.raises(UserError) as found:
        check_cluster(address)
    assert time.monotonic() - started < 12
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense", "is not host:port. Give host:port"),
        (":6379", "is not host:port"),
        ("head:", "is not host:port"),
        ("head:six", "is not host:port"),
        ("head:70000", "is not host:port"),
        ("::1:6379", "is not host:port"),
        ("head:6379/x", "is not host:port"),
        ("he ad:6379", "is not host:port"),
        (
            "http://127.0.0.1:8265",
            "the address of a dashboard, which takes jobs: submit the program, `ray job submit --address http://127.0.0.1:8265",
        ),
        ("ray://127.0.0.1:10001", "Ray Client cannot run these programs"),
        ("tcp://127.0.0.1:6379", "'tcp://' is no address of Ray"),
    ],
)
def test_what_is_no_address_is_refused_without_asking_anybody(address, said):
    assert said in refusal(address)


def test_a_closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "Connection refused. Start one with `ray start --head`" in refusal(f"127.0.0.1:{port}")


def test_a_machine_that_does_not_exist():
    assert "no Ray cluster answers at 'no-such-machine.invalid:6379'" in refusal("no-such-machine.invalid:6379")


def test_a_port_that_is_open_and_silent():
    with listening() as port:
        assert "no Ray cluster answers" in refusal(f"127.0.0.1:{port}")


def test_a_full_backlog_looks_like_an_address_that_drops_packets():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        assert "no Ray cluster answers at" in refusal(f"127.0.0.1:{port}")
        for each in waiting:
            each.close()


def test_another_service():
    with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        said = refusal(f"127.0.0.1:{port}")
    assert "is no Ray cluster" in said or "no Ray cluster answers" in said


def test_a_cluster_that_answers_and_one_of_another_version(ray_session):
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    address = ray_session.get_runtime_context().gcs_address
    assert check_cluster(address) == address
    assert draining_nodes() == set() and "session_" in log_folder()
    known = _internal_kv_get(CLUSTER_METADATA_KEY, namespace=b"cluster")
    other = json.loads(known) | {"ray_version": "2.9.3", "python_version": "3.8.1"}
    _internal_kv_put(CLUSTER_METADATA_KEY, json.dumps(other).encode(), overwrite=True, namespace=b"cluster")
    try:
        said = refusal(address)
    finally:
        _internal_kv_put(CLUSTER_METADATA_KEY, known, overwrite=True, namespace=b"cluster")
    assert "runs Ray 2.9.3 with Python 3.8.1, this program Ray 2." in said
    assert check_cluster(address) == address


def test_a_local_ray_starts_without_the_processes_of_clusters(ray_session):
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert re.findall(r"--listen-port=\d+", next(one for one in commands if "raylet/raylet" in one)) == ["--listen-port=0"]
    assert not [one for one in commands if "dashboard/dashboard.py" in one or "monitor.py" in one]


def test_what_a_lean_start_changes_in_ray_is_there_and_comes_back():
    node, parameter = importlib.import_module("ray._private.node"), importlib.import_module("ray._private.parameter")
    before = node.Node.start_api_server, parameter.RayParams
    assert {"no_monitor", "include_log_monitor", "dashboard_agent_listen_port"} <= set(inspect.signature(before[1]).parameters)
    with lean_start(dashboard=True):
        assert node.Node.start_api_server is before[0] and parameter.RayParams().no_monitor
    with lean_start(dashboard=False):
        assert node.Node.start_api_server is not before[0]
    assert (node.Node.start_api_server, parameter.RayParams) == before
