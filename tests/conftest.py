"""Shared fixtures: the package `platform`, one Ray for the whole session, an S3 server on loopback."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import platform  # noqa: E402

# pytest's executable has already imported the standard module `platform` at this point.
if not hasattr(platform, "__path__"):
    platform.__path__ = [str(ROOT / "platform")]

import pytest  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    _group(items)
    _skip_without_gpu(items)


def _group(items):
    """With `--dist loadgroup`, one process of pytest-xdist takes all tests that need Ray, and so starts only one.

    Two of them at a time would take as long on 2 cores, because a test with Ray has several processes. The other process takes
    the remaining tests, file by file.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if "ray_session" in item.fixturenames else item.location[0]))


def _skip_without_gpu(items):
    """Skip tests marked `gpu` where torch finds no GPU; GPU_TESTS_ANYWHERE=1 runs them on a CPU, to test their code."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting or os.environ.get("GPU_TESTS_ANYWHERE"):
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: `make test-gpu` on a machine that has one"))


pytest_plugins = ["tests.fixtures_s3", "tests.fixtures_shards", "tests.fixtures_runs"]


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray with 4 logical CPUs for every test that needs a cluster."""
    import ray

    from platform.engine.runtime.ray_session import RuntimeConfig, connect

    connect(RuntimeConfig(num_cpus=4, object_store_gib=0.5))
    yield ray
    ray.shutdown()
