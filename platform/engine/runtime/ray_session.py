"""Connect to Ray or start it, and keep the output of other libraries off the terminal.

`connect` covers three cases:
- inside `ray job submit`: the cluster of the job; the code comes from the working directory of the job;
- with an address (or RAY_ADDRESS): that cluster; the code is shipped from this checkout;
- otherwise: a local Ray on this machine, which ends with the program.
"""

import importlib
import logging
import os
import tempfile
import threading
import warnings
from typing import Any, NamedTuple

import ray
from ray.job_config import JobConfig

import reidssl
from platform.engine.config.compose import ROOT
from platform.engine.errors import UserError
from platform.engine.runtime.native_lines import set_native_lines_aside
from platform.engine.runtime.ray_internals import (
    REMEDY,
    check_cluster,
    lean_start,
    log_folder,
    longest_socket_path,
    session_path_length,
    without_remark,
)
from platform.engine.runtime.ray_names import check_ray
from platform.engine.runtime.run_name import name_of_run, run_name, set_run_name
from platform.engine.runtime.terminal import say
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.secrets import hide

# Environment of the workers. PYTHONWARNINGS silences other libraries.
WORKER_ENVIRONMENT = {
    "PYTHONWARNINGS": "ignore",
    "DS_IGNORE_CUDA_DETECTION": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a process that reserves no GPU sees none, so that it cannot crowd another's
}
CLUSTER_ENVIRONMENT = WORKER_ENVIRONMENT | {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # show Train runs in the dashboard
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # Google Cloud gives 30 s notice; Train's default of 5 s wastes too much
}
INIT: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "DeepSpeed", "torch.distributed")
# In the syntax of .gitignore: without its leading slash, "runs" would leave out platform/engine/runs, too.
SHIPPED_EXCLUDES = [".git", ".venv", "/runs", "/build", "tests/.cache", "*.parquet", "*.ckpt"]


_own = False  # whether `connect` started the Ray that this process uses
_share = 1  # the number of processes like this one among which the cores of this machine are divided


def connect(config: RuntimeConfig, program: str = "", folder: str = "", meanwhile: str = "") -> None:
    """Connect to Ray or start it. A process that is connected already only gets its new name.

    Args:
        program, folder: name of the program and URI of its output, shown in the dashboard.
        meanwhile: a module to import while Ray's own processes start, most of which this process only waits for.

    Raises UserError if the address does not answer, Ray cannot start on this machine, or another version of Ray lacks what the
    programs use.
    """
    quiet()
    set_run_name(name_of_run(program, folder) if program else "")
    if ray.is_initialized():
        return
    check_ray()
    address = (config.address or os.environ.get("RAY_ADDRESS", "")).strip()
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    set_native_lines_aside()
    imports = threading.Thread(target=importlib.import_module, args=(meanwhile,)) if meanwhile else None
    if imports:
        imports.start()
    if address not in ("", "local") or in_job:
        _join(address or "auto", in_job, job_metadata(program, folder))
    else:
        _start(config, job_metadata(program, folder))
    if imports:
        imports.join()
    set_native_lines_aside(log_folder())
    without_remark()
    _quiet_ray_data()


def job_metadata(program: str, folder: str) -> JobConfig:
    """Settings of this driver's job, with what the dashboard and `ray list jobs` show of it."""
    shown = {"name": run_name(), "program": program, "run": hide(folder)}
    return JobConfig(metadata={key: value for key, value in shown.items() if value})


def _join(address: str, in_job: bool, job: JobConfig) -> None:
    global _own
    _own = False
    found = check_cluster(address)
    _add_to_environment(CLUSTER_ENVIRONMENT)
    environment: dict[str, Any] = {"env_vars": CLUSTER_ENVIRONMENT}
    if not in_job:
        environment |= {"working_dir": str(ROOT), "excludes": SHIPPED_EXCLUDES}
        if not (ROOT / "reidssl").is_dir():  # installed: the library is elsewhere
            environment["py_modules"] = [os.path.dirname(reidssl.__file__)]
    try:
        ray.init(address=found, runtime_env=environment, job_config=job, **INIT)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"the Ray cluster at '{address}' cannot be used: {_first_line(error)}. {REMEDY}") from None


def _start(config: RuntimeConfig, job: JobConfig) -> None:
    """Start a local Ray. Its workers inherit the environment of this process during the start.

    A Ray runtime environment is not used, because the workers that Ray starts in advance have none and would stay idle.
    PYTHONPATH is set because a worker would otherwise import the standard `platform` before it sees this folder.
    """
    global _own
    _choose_temporary_folder()
    _add_to_environment(WORKER_ENVIRONMENT)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    gib = config.object_store_gib or 2.0
    try:
        with lean_start(config.dashboard):
            ray.init(
                address="local",  # otherwise Ray joins the last cluster started on this machine and rejects the numbers below
                num_cpus=config.local_cpus,
                num_gpus=None if config.num_gpus < 0 else config.num_gpus,
                include_dashboard=config.dashboard,
                dashboard_host="127.0.0.1",
                object_store_memory=int(gib * 2**30),
                job_config=job,
                **INIT,
            )
    except Exception as error:  # a plain Exception if its processes do not answer in time
        raise UserError(
            f"Ray cannot start on this machine: {_first_line(error)}. Its logs lie in {_temporary_folder()}/ray; "
            "look at runtime.*, at the memory and disk that are left, and at other work on this machine"
        ) from None
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    if config.dashboard:
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    _own = True


def _temporary_folder() -> str:
    """The folder in which Ray creates its folder `ray`, by Ray's own rule."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def _choose_temporary_folder() -> None:
    """If Ray cannot use its temporary folder, set RAY_TMPDIR to another one and print a line.

    Raises UserError if no other folder can be used either.
    """
    folder = _temporary_folder()
    reason = unfit_for_ray(folder)
    if not reason:
        return
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR" if os.environ.get("TMPDIR") else "the folder"
    other = next((one for one in ("/tmp", "/var/tmp", "/dev/shm") if not unfit_for_ray(one)), None)
    if other is None:
        raise UserError(
            f"Ray cannot keep its files in {name}={folder}, which {reason}. Set RAY_TMPDIR to a writable folder with "
            f"a path of at most {longest_socket_path() - session_path_length()} characters"
        )
    os.environ["RAY_TMPDIR"] = other
    say(f"{name}={folder} {reason}: Ray keeps its files in {other}/ray instead")


def unfit_for_ray(folder: str) -> str:
    """Reason why Ray cannot use `folder` for its files and sockets, as the end of a sentence; "" if it can."""
    most = longest_socket_path() - session_path_length()
    if not os.path.isabs(folder):
        return "is not an absolute path"
    if len(os.fsencode(folder)) > most:
        return f"is too long for Ray's sockets ({len(os.fsencode(folder))} characters, at most {most})"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        os.makedirs(os.path.join(folder, "ray"), exist_ok=True)
        with tempfile.TemporaryFile(dir=os.path.join(folder, "ray")):
            pass
    except OSError as error:
        return f"cannot be written to ({error.strerror})"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def is_own() -> bool:
    """Whether this process uses a local Ray that it started itself: one node, which ends with the program."""
    return _own


class LocalRay(NamedTuple):
    """What a further process of a program must know of the local Ray that the program started."""

    shown: bool
    """Whether the dashboard shows its Train runs."""
    share: int
    """The number of processes among which the cores are divided."""


def local_ray(share: int) -> LocalRay | None:
    """For `join_as_part` of processes that this program starts; None on a joined cluster."""
    return LocalRay(os.environ.get("RAY_TRAIN_ENABLE_STATE_TRACKING") == "1", share) if _own else None


def join_as_part(local: LocalRay | None) -> None:
    """Prepare this process, an actor, to run programs as the process does that started it. local: see `local_ray`."""
    global _own, _share
    quiet()
    _quiet_ray_data()
    if local:
        _own, _share = True, local.share
        if local.shown:
            os.environ["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "1"


def threads_of_worker(workers: int) -> int:
    """Torch threads of each of a run's workers on a machine that several processes share; 0 if this one has it alone."""
    return max(1, (os.cpu_count() or 1) // (_share * workers)) if _share > 1 else 0


def _add_to_environment(values: dict[str, str]) -> None:
    os.environ.update({key: os.environ.get(key, value) for key, value in values.items()})


def quiet() -> None:
    """Silence the information lines and warnings of other libraries in this process."""
    warnings.filterwarnings("ignore")
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def _quiet_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Keep Ray Data's stack traces in its log file only; the program itself reports the error.
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ != "SessionFileHandler":
            handler.setLevel(logging.CRITICAL)
