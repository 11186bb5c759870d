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


def test_of_two_commands_that_start_together_one_goes_on(tmp_path):
    """Both find no owner. The one whose file was replaced is refused, or ends at its next renewal if it had gone on."""
    folder, go = tmp_path / "run", tmp_path / "go"
    wait = f"import os, time\nprint('ready', flush=True)\nwhile not os.path.exists({str(go)!r}):\n    time.sleep(0.001)\n"
    script = HOLD.replace("with Claims", f"{wait}with Claims", 1)
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT, stdout=-1, stderr=-1, text=True) for _ in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        go.touch()
        until = time.monotonic() + 30
        while all(process.poll() is None for process in both) and time.monotonic() < until:
            time.sleep(0.05)
        (loser,) = [process for process in both if process.poll() is not None]
        (winner,) = [process for process in both if process is not loser]
        out, err = loser.communicate()
        assert f"another command writes to {folder} now (process {winner.pid} on" in out + err
        assert winner.poll() is None
        assert f'"pid": {winner.pid}' in (folder / OWNER).read_text()
    finally:
        for process in both:
            process.kill()
            process.communicate()


def test_an_owner_whose_folder_was_taken_ends(tmp_path, other):
    """As after its machine stood still for so long that the next command took it for dead."""
    record = {"host": "elsewhere/pid:[1]", "pid": 1, "since": "today", "id": "taker", "renewals": 0}
    deadline = time.monotonic() + 20
    while other.poll() is None and time.monotonic() < deadline:  # a renewal may be under way, which replaces the file once more
        open_storage(str(tmp_path / OWNER)).write_json(record)
        time.sleep(0.05)
    assert other.returncode == -signal.SIGTERM
    assert f"another command writes to {tmp_path} now (process 1 on elsewhere, since today): this one ends" in other.stdout.read()
    assert '"id": "taker"' in (tmp_path / OWNER).read_text()


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
