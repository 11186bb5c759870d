"""The names of Ray's private interface that the programs use, checked at the start with another version of Ray.

Private names change without notice. Without this check, a changed one is a stack trace in the middle of a run, and a renamed
method that a subclass overrides is silently no longer called.
"""

import importlib
from collections.abc import Mapping, Sequence

import ray

from platform.engine.errors import UserError

TESTED = "2.60.0"
"""The version that all names were tested with, as pinned in pyproject.toml."""
_TRAIN = "ray.train.v2._internal"
NAMES: dict[str, tuple[str, ...]] = {
    "ray._common.usage.usage_constants": ("CLUSTER_METADATA_KEY",),
    "ray._private.grpc_utils": ("init_grpc_channel",),
    "ray._private.node": ("Node.start_api_server",),
    "ray._private.parameter": ("RayParams",),
    "ray._private.ray_constants": ("KV_NAMESPACE_CLUSTER",),
    "ray._private.services": ("canonicalize_bootstrap_address",),
    "ray._private.state": ("state.get_draining_nodes",),
    "ray._private.utils": ("check_version_info", "compute_version_info"),
    "ray._private.worker": ("_global_node", "print_to_stdstream"),
    "ray._raylet": ("PlacementGroupID",),
    "ray.data": ("Dataset.map_batches_internal",),
    "ray.core.generated.gcs_service_pb2": ("InternalKVGetRequest",),
    "ray.core.generated.gcs_service_pb2_grpc": ("InternalKVGcsServiceStub",),
    f"{_TRAIN}.callbacks.datasets": ("DatasetsCallback",),
    f"{_TRAIN}.callbacks.placement_group_callback": ("PlacementGroupCleanerCallback",),
    f"{_TRAIN}.callbacks.preemption_callback": ("PreemptionCallback",),
    f"{_TRAIN}.execution.context": ("get_train_context",),
    f"{_TRAIN}.execution.controller": ("TrainController._start", "TrainController.worker_group_cls"),
    f"{_TRAIN}.execution.failure_handling": ("FailureDecision.RAISE",),
    f"{_TRAIN}.execution.failure_handling.default": ("DefaultFailurePolicy.make_decision",),
    f"{_TRAIN}.execution.scaling_policy": (
        "ElasticScalingPolicy.make_decision_for_non_running_worker_group",
        "ElasticScalingPolicy.make_decision_for_running_worker_group",
        "ElasticScalingPolicy._count_possible_workers",
        "ElasticScalingPolicy._get_reserved_resources",
        "ElasticScalingPolicy._get_resize_decision",
        "ElasticScalingPolicy.GET_RESERVED_RESOURCES_INTERVAL_S",
        "NoopDecision",
        "ResizeDecision",
    ),
    f"{_TRAIN}.execution.scaling_policy.autoscaling_coordinator_client": ("AUTOSCALING_REQUESTS_GET_TIMEOUT_S",),
    f"{_TRAIN}.execution.worker_group": (
        "Worker",
        "WorkerGroup._create_workers",
        "WorkerGroup._init_train_context_on_workers",
        "WorkerGroup._assign_worker_ranks",
        "WorkerGroup._decorate_worker_log_file_paths",
        "WorkerGroup.get_latest_poll_status",
        "WorkerGroup.shutdown",
    ),
    f"{_TRAIN}.execution.worker_group.worker": ("RayTrainWorker",),
    f"{_TRAIN}.util": ("time_monotonic",),
    "ray.train.torch": (
        "TorchConfig.backend_cls",
        "TorchTrainer._initialize_and_run_controller",
        "TorchTrainer._create_default_callbacks",
        "TorchTrainer._register_sigint_handler",
    ),
    "ray.train.v2.api.config": ("ScalingConfig._resources_per_worker_not_none", "ScalingConfig.min_workers"),
    "ray.train.torch.config": ("_TorchBackend.on_start",),
}
"""Module -> names in it, with the attributes of classes that are used or overridden."""


def check_ray() -> None:
    """Raise UserError if this Ray is not the tested version and lacks a name. Costs nothing with the tested version."""
    if ray.__version__ == TESTED:
        return
    missing = missing_names(NAMES)
    if missing:
        raise UserError(
            f"Ray {ray.__version__} has no {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}, which these programs "
            f"need: they were written for Ray {TESTED}. Install that version on every node, pip install "
            f"'ray[default,data,train,tune]=={TESTED}' (requirements.lock)"
        )


def missing_names(names: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of the names that do not exist. Imports the modules."""
    missing = []
    for module, attributes in names.items():
        try:
            found = importlib.import_module(module)
        except ImportError:
            missing.append(module)
            continue
        for attribute in attributes:
            value: object = found
            for part in attribute.split("."):
                value = getattr(value, part, missing)
            if value is missing:
                missing.append(f"{module}.{attribute}")
    return missing
