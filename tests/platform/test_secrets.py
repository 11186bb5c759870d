"""Secrets given in every way are in no output of the programs: terminal, run folders, checkpoints, reports, logs of Ray."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from platform.engine import secrets
from platform.engine.config.compose import load_config
from platform.engine.errors import UserError
from platform.engine.runs.run_folder import open_run
from platform.engine.runtime.ray_internals import log_folder
from platform.engine.schemas.report_settings import ReportConfig
from platform.pretrain import PretrainConfig
from platform.pretrain import main as pretrain
from platform.report import main as report
from platform.tune import TuneConfig
from platform.tune import main as tune
from tests.tiny import FINETUNE, PRETRAIN

ROOT = Path(__file__).resolve().parents[2]
PLANTED = {name: f"planted-{name}-0123" for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "TEAM_PHRASE", "URI_PW")}
IN_URI = "planted-in-the-uri"


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr(secrets, "_from_environment", {})
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def refusing():
    """host:port of a server that answers every request with 401."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def written_as(value: str) -> list[bytes]:
    """The bytes that a secret is in a file: as it is, in hexadecimal, and in base64 from each of the three phases."""
    coded = [base64.b64encode(b"." * phase + value.encode())[4 * (phase > 0) : -4] for phase in range(3)]
    return [value.encode(), value.encode().hex().encode(), *coded]


def found_in(*folders: Path) -> list[str]:
    """Files below the folders that contain a planted secret, also within pickles that Ray writes as text."""
    wanted = [form for value in (*PLANTED.values(), IN_URI) for form in written_as(value)]
    files = [Path(folder, name) for top in folders for folder, _, names in os.walk(top) for name in names]
    return [str(file) for file in files if file.is_file() and any(value in file.read_bytes() for value in wanted)]


@pytest.mark.parametrize("code", [bytes.hex, lambda data: base64.b64encode(data).decode(), bytes.decode])
@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_a_secret_is_found_in_every_form(tmp_path, code, before):
    (tmp_path / "state.json").write_text(code(f"{before} {IN_URI} and more".encode()))
    assert found_in(tmp_path) == [str(tmp_path / "state.json")]


def run_of(tiny_shards, output, *more: str) -> PretrainConfig:
    tiny = [*PRETRAIN, "length.samples=48", "checkpoint.every_steps=2", "tracking.every_steps=1", "scaling.threads=1"]
    given = [f"data.uri={tiny_shards.uri}", f"output={output}", "tracking.experiment=${oc.env:TEAM_PHRASE}", *tiny, *more]
    return load_config(PretrainConfig, "pretrain", given)


def test_no_output_holds_a_secret(planted, refusing, monkeypatch, tiny_shards, tmp_path, ray_session, capfd):
    """A run whose tracker refuses its password, then the same run with other secrets and without the tracker, and its report."""
    output = tmp_path / "run"
    address = f"tracking.mlflow=http://joe:{IN_URI}@{refusing}/${{oc.env:URI_PW}}"
    with pytest.raises(UserError, match=r"tracking\.mlflow=http://\S*127\.0\.0\.1:\S* cannot be used: .*401") as error:
        pretrain(run_of(tiny_shards, output, address, "scaling.max_failures=0"))
    assert "planted" not in str(error.value)
    assert "http://***@" in (output / "config.json").read_text()
    monkeypatch.setenv("TEAM_PHRASE", PLANTED["TEAM_PHRASE"] + "-rotated")
    assert pretrain(run_of(tiny_shards, output))["steps"] == 3
    report(ReportConfig(run=str(output)))
    stored = json.loads((output / "config.json").read_text())["config"]["tracking"]
    assert stored["experiment"] == "${oc.env:TEAM_PHRASE}"
    shown = capfd.readouterr()
    assert "planted" not in shown.out + shown.err
    assert (output / "checkpoints/position-000000000048/state.pt").exists() and (output / "report.html").exists()
    assert found_in(tmp_path) == []
    assert log_folder() and found_in(Path(log_folder())) == []


@pytest.mark.slow  # a sweep for one check; test_tune runs one
def test_no_file_of_a_sweep_holds_a_secret(planted, tiny_labeled, tiny_backbone, tmp_path, ray_session, capfd):
    """Ray Tune writes the function of the trials, its callbacks and its scheduler to a file."""
    given = [f"finetune.{each}" for each in (f"target_set={tiny_labeled.uri}", f"checkpoint={tiny_backbone}", *FINETUNE)]
    given += ["finetune.setting=supervised", "finetune.tracking.experiment=${oc.env:TEAM_PHRASE}", "finetune.evaluate_every=1"]
    given += ["space.supervised.learning_rate={log_uniform:[1e-4,1e-3]}", "samples=1", "scheduler.name=pbt"]
    assert tune(load_config(TuneConfig, "tune", [*given, f"output={tmp_path}/sweep"]))["best"]
    shown = capfd.readouterr()
    assert "planted" not in shown.out + shown.err
    assert (tmp_path / "sweep" / "ray_tune" / "tuner.pkl").exists()
    assert found_in(tmp_path) == []


def test_a_new_secret_is_not_another_configuration(planted, monkeypatch, tmp_path):
    """Compared with nothing left out, a password may change; what is not secret may not."""

    def begin(address: str) -> None:
        config = load_config(
            PretrainConfig, "pretrain", [f"tracking.mlflow={address}", "tracking.experiment=${oc.env:TEAM_PHRASE}"]
        )
        open_run("pretrain", str(tmp_path / "run"), config, config.storage, volatile=())

    begin("http://joe:old@host")
    monkeypatch.setenv("TEAM_PHRASE", "planted-anew")
    begin("http://joe:new@host")
    with pytest.raises(UserError, match=r"tracking\.mlflow: 'http://\*\*\*@host' -> 'http://\*\*\*@other'"):
        begin("http://joe:new@other")


TRACK = """
import sys
from platform.engine.runs.metrics import Tracker, TrackingConfig
from platform.engine.storage.location import open_storage
folder = sys.argv[1]
tracking = TrackingConfig(tensorboard=f"{folder}/board", wandb="people", mlflow=f"sqlite:///{folder}/mlflow.db")
tracker = Tracker(open_storage(f"{folder}/run"), tracking)
tracker.add(16, {"loss": 1.0})
tracker.publish()
tracker.close()
"""


def test_files_of_trackers_hold_no_secret(planted, tmp_path):
    """In a process of its own, because the folder of wandb is that of the first run of a process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    ended = subprocess.run(
        [sys.executable, "-c", TRACK, str(tmp_path)], cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / "mlflow.db").exists() and list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert found_in(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--show-config", f"tracking.mlflow=http://joe:{IN_URI}@host", "tracking.experiment=${oc.env:TEAM_PHRASE}"],
        ["--help", f"tracking.mlflow=http://joe:{IN_URI}@host", "tracking.experiment=${oc.env:TEAM_PHRASE}"],
        [f"tracking.password={IN_URI}"],
        [f"--password={IN_URI}"],
        [f"data.uri=s3://joe:{IN_URI}@bucket/x"],
        [f"storage.endpoint_url=http://joe:{IN_URI}@host"],
    ],
)
def test_the_command_line_is_not_repeated_with_its_secrets(planted, arguments, tmp_path):
    command = [sys.executable, "-m", "platform.pretrain", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=120)
    assert "planted" not in found.stdout + found.stderr and "Traceback" not in found.stderr
    assert (found.returncode == 0 and "http://***@host" in found.stdout) == arguments[0].startswith(
        "--h" if "--help" in arguments else "--s"
    )
