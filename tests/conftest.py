"""Shared fixtures: the package `platform`, one Ray for the whole session, an S3 server on loopback."""

import os
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import platform  # noqa: E402

# pytest's executable has already imported the standard module `platform` at this point.
if not hasattr(platform, "__path__"):
    platform.__path__ = [str(ROOT / "platform")]

import pytest  # noqa: E402

WITH_RAY = re.compile(r"ray_session|supervised_run|tests\.platform\.(head_node|hosts|processes|survival)")
"""In the text of a file whose tests start a Ray or use that of the session."""


@cache
def _scope(file):
    """What one process of pytest-xdist takes as a whole: "ray", all files with tests that need Ray, or a file without any."""
    return "ray" if WITH_RAY.search((ROOT / file).read_text(encoding="utf-8")) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With pytest-xdist, one process takes all tests that need Ray, one after the other; the other processes take the rest.

    Two of them at a time would take as long on 2 cores, because each has several processes.
    """
    from xdist.scheduler import LoadScopeScheduling

    class RayInOneProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _scope(nodeid.partition("::")[0])

    return RayInOneProcess(config, log)


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` where torch finds no GPU; GPU_TESTS_ANYWHERE=1 runs them on a CPU, to test their code."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting or os.environ.get("GPU_TESTS_ANYWHERE"):
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: `make EXTRA=gpu test-gpu` on a machine that has one"))


pytest_plugins = ["tests.fixtures_s3", "tests.fixtures_shards", "tests.fixtures_runs"]


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray with 4 logical CPUs for every test that needs a cluster."""
    import ray

    from platform.engine.runtime.ray_session import RuntimeConfig, connect

    connect(RuntimeConfig(num_cpus=4, object_store_gib=0.5))
    yield ray
    ray.shutdown()
