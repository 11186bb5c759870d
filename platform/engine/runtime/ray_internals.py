"""Check within seconds that a Ray cluster answers at an address, because `ray.init` takes minutes to give up.

The file also has the other functions that need Ray's private interface. Ray's private modules are imported only here and, for
the classes that it extends, in platform/engine/train/elastic.py and trainer.py;
tests/platform/engine/runtime/test_ray_internals.py checks this.
"""

import importlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from platform.engine.errors import UserError

CONNECT_S, ANSWER_S = 4.0, 6.0
REMARK = "worker processes have been started on node"
DASHBOARD_PORT = 8265
REMEDY = "Start one with `ray start --head`, correct runtime.address / RAY_ADDRESS, or leave both empty to start a local Ray"


def train_worker() -> type:
    """The class of the actors in which Ray Train runs a loop. This import does not import torch, `ray.train.torch` does."""
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    return RayTrainWorker


def placement_groups() -> dict[str, str]:
    """Id of each placement group with CPUs -> name of the resource that stands for all of them."""
    import ray

    found = ((re.fullmatch(r"CPU_group_([0-9a-f]{16,})", name), name) for name in ray.cluster_resources())
    return {match[1]: name for match, name in found if match}


def idle_groups() -> set[str]:
    """Ids of the placement groups whose CPUs are all unused."""
    import ray

    total, available = ray.cluster_resources(), ray.available_resources()
    return {group for group, name in placement_groups().items() if available.get(name, 0.0) == total.get(name)}


def remove_group(group: str) -> None:
    """Remove the placement group with this id. Does nothing if it is gone already."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


@contextmanager
def lean_start(dashboard: bool) -> Iterator[None]:
    """Context manager for `ray.init` of a local Ray: it starts without the processes that only serve clusters.

    These are the autoscaler's monitor, the one that sends the workers' output to the driver (log_to_driver is False) and, without
    a dashboard, its server. The node's agent listens on any free port: the fixed one costs the second Ray on a machine 3.4 s of
    attempts to bind it. `ray.init` has no arguments for these.
    """
    parameter: Any = importlib.import_module("ray._private.parameter")
    node: Any = importlib.import_module("ray._private.node")
    params, api_server = parameter.RayParams, node.Node.start_api_server

    def no_server(self: Any, **_: Any) -> None:
        self._webui_url = ""

    parameter.RayParams = partial(params, dashboard_agent_listen_port=0, no_monitor=True, include_log_monitor=False)
    if not dashboard:
        node.Node.start_api_server = no_server
    try:
        yield
    finally:
        parameter.RayParams, node.Node.start_api_server = params, api_server


def without_remark() -> None:
    """Keep Ray's remark about many worker processes off the terminal: processes that only wait are part of the programs' design.

    It arrives in the driver among messages that matter, such as those about a lack of memory.
    """
    worker: Any = importlib.import_module("ray._private.worker")
    show = worker.print_to_stdstream
    if getattr(show, "func", None) is not _show_others:
        worker.print_to_stdstream = partial(_show_others, show)


def _show_others(show: Any, data: dict[str, Any], **options: Any) -> None:
    if not any(REMARK in str(line) for line in data.get("lines", ())):
        show(data, **options)


def check_cluster(address: str) -> str:
    """host:port of the cluster at `address` ("auto": the cluster on this machine), after checking that it answers.

    Takes at most about ten seconds and leaves no thread that prints. Raises UserError if the address is invalid, nothing listens
    or answers there, another service answers, or the cluster has another version or token.
    """
    host, port = _host_and_port(address)
    where = f"'{address}'" if address != "auto" else f"'auto' ({host}:{port})"
    _reach(host, port, where)
    _check_version(_ask(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", port, where), where)
    return f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"


def _host_and_port(address: str) -> tuple[str, int]:
    """(host, port) of an address. Raises UserError if it is not host:port; the message explains other known kinds."""
    wanted = f"Give host:port of the cluster's head, as `ray start --head` prints it (port 6379 by default): got '{address}'"
    scheme, separator, _ = address.partition("://")
    if separator and scheme in ("http", "https"):
        raise UserError(
            "runtime.address / RAY_ADDRESS is the address of a dashboard, which takes jobs: submit the program, `ray "
            f"job submit --address {address} --working-dir . -- python -m platform...`. {wanted}"
        )
    if separator:
        kind = "Ray Client cannot run these programs" if scheme == "ray" else f"'{scheme}://' is no address of Ray"
        raise UserError(f"runtime.address / RAY_ADDRESS: {kind}. {wanted}")
    host, port = _parts(_found_on_this_machine() if address == "auto" else address)
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or any(sign.isspace() or sign == "/" for sign in host):
        raise UserError(f"runtime.address / RAY_ADDRESS is not host:port. {wanted}")
    return host, int(port)


def _parts(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], port
    return ("", "") if ":" in host else (host, port)  # an IPv6 address needs brackets


def _found_on_this_machine() -> str:
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return str(canonicalize_bootstrap_address("auto") or "")
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no Ray cluster was started on this machine ({str(error).splitlines()[0]}). {REMEDY}") from None


def _reach(host: str, port: int, where: str) -> None:
    """Connect to the port once, to see that something listens. Raises UserError if not.

    It connects in a thread, so that a slow name server or dropped packets cannot take longer than CONNECT_S in total.
    """
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_S).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_S + 0.5)
    failed = outcome[0] if outcome else TimeoutError(f"no answer within {CONNECT_S:g} s")
    if isinstance(failed, socket.gaierror):
        raise UserError(f"no Ray cluster answers at {where}: there is no machine called '{host}' ({failed.strerror}). {REMEDY}")
    if failed is not None:
        raise UserError(f"no Ray cluster answers at {where}: {failed.strerror or failed}. {REMEDY}")


def _ask(target: str, port: int, where: str) -> dict[str, Any]:
    """Metadata from the control service of the cluster; {} if it has not written them yet. Raises UserError on failure."""
    import grpc
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    try:
        with init_grpc_channel(target) as channel:
            message: Any = gcs_service_pb2  # Any: protobuf creates its classes at import time
            request = message.InternalKVGetRequest(key=CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
            answer = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=ANSWER_S)
        found = json.loads(answer.value) if answer.value else {}
    except grpc.RpcError as error:
        code, detail = error.code(), (str(error.details() or "").splitlines() or [""])[0]
        if code == grpc.StatusCode.UNAUTHENTICATED:
            raise UserError(
                f"the Ray cluster at {where} refuses this user's token ({detail}): copy the cluster's token to "
                "~/.ray/auth_token or set RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token"
            ) from None
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise UserError(
                f"no Ray cluster answers at {where}: the port is open, but silent for {ANSWER_S:g} s. {REMEDY}"
            ) from None
        hint = " (8265 is the dashboard's port; the head's is 6379 by default)" if port == DASHBOARD_PORT else ""
        raise UserError(f"what listens at {where} is no Ray cluster{hint}: {detail[:150]}. {REMEDY}") from None
    except ValueError as error:
        raise UserError(f"what listens at {where} is no Ray cluster: {str(error)[:150]}. {REMEDY}") from None
    return found if isinstance(found, dict) else {}


def _check_version(metadata: dict[str, Any], where: str) -> None:
    from ray._private.utils import check_version_info, compute_version_info

    try:
        if metadata:
            check_version_info(metadata, where)
    except RuntimeError:
        ours = compute_version_info()
        raise UserError(
            f"the Ray cluster at {where} runs Ray {metadata.get('ray_version')} with Python "
            f"{metadata.get('python_version')}, this program Ray {ours[0]} with Python {ours[1]}: both must be the "
            "same. Use the cluster's environment here, or start the cluster from this one"
        ) from None


def log_folder() -> str:
    """Log folder on this machine of the Ray that this process uses; "" if it is not known."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return str(node.get_logs_dir_path()) if node is not None else ""


def draining_nodes() -> set[str]:
    """Ids of the nodes of the connected cluster that are being drained."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def preemption() -> Any:
    """Ray Train's PreemptionInfo of this worker, or None.

    `ray.train.get_preemption_info` is a barrier among all workers (4 ms per call, 36 ms at worst). This function only reads the
    state of this worker.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    try:
        return get_train_context().preemption_context.preemption_info
    except RuntimeError:  # not in a Train worker
        return None


def session_path_length() -> int:
    """Number of characters that Ray appends to its temporary folder for the path of its longest socket."""
    return len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1")


def longest_socket_path() -> int:
    """Largest number of bytes in the path of a socket (Linux)."""
    return 107
