"""`ray job submit --working-dir . -- python -m platform.pretrain ...` on a separate cluster with token authentication."""

import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from platform.engine.runs.metrics import read_metrics
from platform.engine.storage.location import open_storage
from tests.platform.head_node import Head, free_ports, head_node, short_folder
from tests.tiny import PIPELINE, PRETRAIN

TINY = [*PRETRAIN, "length.epochs=2", "tracking.every_steps=2", "scaling.threads=1"]
STEPS = 180 // 16  # 90 images, two epochs
OTHER_LINES = 10  # the command, the plan, and Ray's unavoidable lines


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    """A head with 4 CPUs and a token."""
    with short_folder("rj") as folder, head_node(folder, free_ports(1)[0], "--num-cpus=4", RAY_JOB_STOP_WAIT_TIME_S="60") as head:
        yield head


def page(head: Head, path: str) -> Any:
    """What a page of the dashboard is made from."""
    url, token = head.environment["RAY_API_SERVER_ADDRESS"] + path, Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_submitted_pre_training_is_readable_and_succeeds(cluster, tiny_shards, tmp_path):
    output = tmp_path / "run"
    found = cluster.ray(
        "job",
        "submit",
        "--working-dir",
        ".",
        "--submission-id",
        "tiny",
        "--",
        "python",
        "-m",
        "platform.pretrain",
        f"data.uri={tiny_shards.uri}",
        f"output={output}",
        *TINY,
    )
    log = found.stdout
    assert found.returncode == 0 and re.search(r"Job 'tiny' succeeded", log), log
    # One line per interval, with the important metrics.
    lines = [line for line in log.splitlines() if re.search(r"\bstep \d+/", line)]
    assert [int(re.search(r"step (\d+)/", line).group(1)) for line in lines] == [2, 4, 6, 8, 10, STEPS], log
    for line in lines:
        assert re.fullmatch(
            rf"\d\d:\d\d:\d\d  step \d+/{STEPS}  epoch [\d.]+  loss [\d.]+  lr [\d.e+-]+  [\d,]+ images/s  .*"
            r"teacher entropy [\d.]+\b.*",
            line,
        ), line
    own = cluster.ray("job", "logs", "tiny").stdout  # without the output of the submission
    rest = [line for line in own.splitlines() if line.strip() and line not in lines]
    assert len(rest) <= OTHER_LINES, "\n".join(rest)
    ours = [line for line in rest if "(raylet)" not in line]  # Ray's remarks on a busy machine, a few at most
    assert not re.search(r"(?i)warning|traceback|\berror\b", "\n".join(ours)), "\n".join(ours)
    assert [row["position"] // 16 for row in read_metrics(open_storage(str(output)))] == [2, 4, 6, 8, 10, STEPS]
    assert (output / "backbone.safetensors").exists() and (output / "summary.json").exists()
    # The Jobs, Train and Data pages show what ran, by its program and folder.
    (job,) = [job for job in page(cluster, "/api/jobs/") if job["submission_id"] == "tiny"]
    assert job["status"] == "SUCCEEDED"
    (run,) = page(cluster, "/api/train/v2/runs/v1")["train_runs"]
    assert (run["name"], run["status"], run["job_id"]) == ("pretrain-run", "FINISHED", job["job_id"])
    assert run["run_settings"]["train_loop_config"]["stream.micro_batch"] == 8
    datasets = page(cluster, f"/api/data/datasets/{job['job_id']}")["datasets"]
    assert datasets and all(each["dataset"].startswith("pretrain-run_") for each in datasets)


def test_relative_paths_in_a_job(cluster, tiny_shards, tmp_path):
    """In Ray's copy of the submitted folder outputs would be lost; in a permanent folder relative paths work as usual."""
    program = "python -m platform.select random=true"
    story = (
        f"{program} data={tiny_shards.uri} output=out/lost; {program} data=tests/nowhere output={tmp_path}/out; "
        f"cd {tmp_path} && {program} data={os.path.relpath(tiny_shards.path, tmp_path)} output=out/kept"
    )
    found = cluster.ray("job", "submit", "--working-dir", ".", "--", "bash", "-c", story)
    assert found.returncode == 0 and "Traceback" not in found.stdout, found.stdout
    lost, missing = re.findall(r"^error: configuration: (.*)$", found.stdout, re.MULTILINE)
    assert re.search(r"output: 'out/lost' would be lost: .*temporary copy.*output=s3://bucket/prefix, or an absolute path", lost)
    assert re.search(r"data: 'tests/nowhere' is not in the folder of this job, /\S*/working_dir_files/", missing)
    assert (tmp_path / "out/kept/manifest.json").exists() and not (tmp_path / "out/manifest.json").exists()


@pytest.mark.slow
def test_a_users_mistake_is_one_line_in_the_log_of_the_job(cluster, tmp_path):
    found = cluster.ray(
        "job",
        "submit",
        "--working-dir",
        ".",
        "--",
        "python",
        "-m",
        "platform.pretrain",
        f"data.uri={tmp_path}/nowhere",
        f"output={tmp_path}/run",
        *TINY,
    )
    assert found.returncode != 0 and "failed" in found.stdout
    assert "FAILED" in {job["status"] for job in page(cluster, "/api/jobs/") if str(tmp_path) in job["entrypoint"]}
    assert "error: there is no data set at" in found.stdout and "Traceback" not in found.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_job_submitted_again_under_its_name_goes_on(cluster, tiny_shards, tmp_path):
    """`ray job stop` sends SIGTERM. The checkpoint written on it is the only one possible."""
    submit = ["job", "submit", "--working-dir", ".", "--submission-id", "spot", "--"]
    program = [
        "python",
        "-m",
        "platform.pretrain",
        f"data.uri={tiny_shards.uri}",
        f"output={tmp_path / 'run'}",
        *TINY,
        "length.epochs=80",
        "checkpoint.every_steps=100000",
    ]
    assert cluster.ray(*submit[:-1], "--no-wait", "--", *program).returncode == 0
    deadline = time.monotonic() + 200
    while not re.search(r"\bstep \d\d+/", cluster.ray("job", "logs", "spot").stdout):
        assert time.monotonic() < deadline, cluster.ray("job", "logs", "spot").stdout
    cluster.ray("job", "stop", "spot")
    log = cluster.ray("job", "logs", "spot").stdout
    stopped = re.search(r"checkpoint at step (\d+) on notice", log)
    assert stopped and "was stopped" in cluster.ray("job", "status", "spot").stdout, log
    assert cluster.ray("job", "delete", "spot").returncode == 0  # Ray reserves a name until the job is deleted
    found = cluster.ray(*submit, *program)
    assert found.returncode == 0 and f"continuing from {16 * int(stopped.group(1)):,} samples seen" in found.stdout, found.stdout
    rows = read_metrics(open_storage(str(tmp_path / "run")))
    assert [row["position"] for row in rows] == sorted({row["position"] for row in rows}) and rows[-1]["position"] == 7200


@pytest.mark.parametrize("token", ["b" * 64, ""])
def test_without_the_token_nothing_is_submitted(cluster, token, tmp_path):
    (tmp_path / "token").write_text(token)
    found = cluster.ray(
        "job",
        "submit",
        "--working-dir",
        ".",
        "--submission-id",
        "intruder",
        "--",
        "touch",
        str(tmp_path / "owned"),
        RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"),
    )
    assert found.returncode != 0 and re.search("(?i)token", found.stdout), found.stdout
    assert not (tmp_path / "owned").exists()
    assert "intruder" not in cluster.ray("job", "list").stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pipeline_runs_its_stages_side_by_side_on_a_joined_cluster(cluster, tmp_path):
    """Without controls its stages share the 4 CPUs; too many stages at a time are refused before any work."""
    command = [sys.executable, "-m", "platform.pipeline", f"runtime.address={cluster.address}", *PIPELINE]
    refused = cluster.run(*command, f"output={tmp_path}/many", "concurrent=5")
    assert refused.returncode == 2 and "5 stages at a time need 5 CPU, this Ray has 4: lower concurrent" in refused.stdout
    found = cluster.run(*command, f"output={tmp_path}/run", "concurrent=2", timeout=800)
    assert found.returncode == 0, found.stdout
    stages = json.loads((tmp_path / "run" / "results.json").read_text())["stages"]
    assert len(stages) == 11 and {stage["status"] for stage in stages.values()} == {"complete"}
    assert re.search(r"(?m)^\S+  pretrain-full \| .*step 12/12", found.stdout), "lines name their stage"
