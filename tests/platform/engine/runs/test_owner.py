"""One command at a time writes to a folder."""

import os
import signal
import subprocess
import sys
import time

import pytest

from platform.engine.errors import UserError
from platform.engine.runs.owner import OWNER, Claims, claim
from platform.engine.storage.location import StorageConfig, open_storage
from tests.conftest import ROOT

HOLD = """
import sys, time
from platform.engine.runs.owner import Claims, claim
from platform.engine.storage.location import open_storage
with Claims(renewed_every_s=0.1):
    claim(open_storage(sys.argv[1]))
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that owns the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_owner_is_left_alone(tmp_path, other, capsys):
    with (
        Claims(watched_s=20),
        pytest.raises(UserError, match=rf"another command writes to {tmp_path} now \(process {other.pid} on"),
    ):
        claim(open_storage(str(tmp_path)))
    assert "belongs to another command" in capsys.readouterr().out
    assert (tmp_path / OWNER).exists()


def test_a_killed_owner_is_replaced_at_once(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / OWNER).exists()
    started = time.monotonic()
    with Claims():
        claim(open_storage(str(tmp_path)))
        claim(open_storage(str(tmp_path)))  # of the same command
        assert f'"pid": {os.getpid()}' in (tmp_path / OWNER).read_text()
    assert time.monotonic() - started < 10 and not (tmp_path / OWNER).exists()


def test_an_owner_on_another_machine_is_watched(s3, capsys):
    """Nobody can ask whether its process lives, but it would renew its file."""
    folder = open_storage(f"{s3.uri}/watched", StorageConfig(endpoint_url=s3.endpoint_url))
    (folder / OWNER).write_json({"host": "elsewhere/pid:[1]", "pid": 1, "since": "yesterday", "id": "other", "renewals": 3})
    with Claims(renewed_every_s=0.1, watched_s=0.5):
        claim(folder)
        assert (folder / OWNER).read_json()["pid"] == os.getpid()
    printed = capsys.readouterr().out
    assert "(process 1 on elsewhere, since yesterday): watching" in printed and "that command has ended without a word" in printed
    assert not (folder / OWNER).exists()


def test_functions_of_a_library_own_nothing(tmp_path):
    claim(open_storage(str(tmp_path)))
    assert not (tmp_path / OWNER).exists()
