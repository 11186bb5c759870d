"""The terminal shows only the program's lines: native output of a real scoring goes to Ray's logs, Ctrl-C gives one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from platform.engine.runtime.ray_session import RuntimeConfig, connect, unfit_for_ray
from tests.conftest import ROOT
from tests.platform.own_lines import foreign_lines


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_native_lines_go_to_the_file_and_pythons_to_the_terminal(tmp_path):
    found = run_python(f"""
import logging, os, sys
logging.basicConfig(format="%(message)s")
from platform.engine.runtime.native_lines import set_native_lines_aside
os.write(2, b"native before\\n")
set_native_lines_aside()
os.write(2, b"native without a folder\\n")
set_native_lines_aside({str(tmp_path)!r})
os.write(2, b"native after\\n")
os.system("echo a child >&2")
print("printed", file=sys.stderr)
logging.warning("logged")
raise RuntimeError("raised")
""")
    lines = found.stderr.splitlines()
    assert lines[:3] == ["native before", "printed", "logged"] and lines[-1] == "RuntimeError: raised"
    assert "native a" not in found.stderr
    (file,) = tmp_path.iterdir()
    assert file.read_text() == "native after\na child\n"


def test_a_crash_still_shows(tmp_path):
    found = run_python(f"""
import os
from platform.engine.runtime.native_lines import set_native_lines_aside
set_native_lines_aside({str(tmp_path)!r})
os.abort()
""")
    assert found.returncode < 0 and "Fatal Python error: Aborted" in found.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 60, r"is too long for Ray's sockets \(\d+ characters, at most 37\)"),
        ("nowhere", "No such file"),
        ("file", "Not a directory"),
    ],
)
def test_temporary_folders_that_ray_cannot_use(name, reason):
    folder = Path("/tmp") / f"t{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "file").write_text("")
        (folder / ("x" * 60)).mkdir()
        with pytest.raises(AssertionError, match=reason):
            assert not unfit_for_ray(str(folder / name)), unfit_for_ray(str(folder / name))
        assert unfit_for_ray(str(folder)) == "" and unfit_for_ray("tmp") == "is not an absolute path"
        assert "cannot be written to" in unfit_for_ray("/proc")
    finally:
        subprocess.run(["rm", "-r", str(folder)], check=True)


def start_scoring(arguments: list[str], log: Path, temporary: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "platform.score", *arguments, "pool.actors=1", "runtime.object_store_gib=0.2"]
    with log.open("wb") as stream:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "", "TMPDIR": str(temporary)},
        )


@pytest.mark.slow
def test_a_scoring_interrupted_and_run_again_says_nothing_that_is_not_its_own(
    tmp_path, tiny_shards, tiny_backbone, other_backbone
):
    """Ray's core reports a false error at every start of Ray Data's actors. TMPDIR is too long for Ray's sockets."""
    long = tmp_path / ("long-" * 10)
    long.mkdir()
    arguments = [
        f"data={tiny_shards.uri}",
        f"source_proxy={tiny_backbone}",
        f"target_proxy={other_backbone}",
        f"output={tmp_path}/scores",
    ]
    log = tmp_path / "first.log"
    process = start_scoring(arguments, log, long)
    try:
        deadline = time.monotonic() + 120
        while "score: 90 images" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert log.read_text().splitlines()[-1] == "interrupted; run the same command again to continue"
    assert foreign_lines(log.read_text()) == []
    log = tmp_path / "second.log"
    assert start_scoring(arguments, log, long).wait(timeout=200) == 0, log.read_text()
    assert foreign_lines(log.read_text()) == [] and "computed 90/90" in log.read_text()
    assert "is too long for Ray's sockets" in log.read_text() and "Ray keeps its files in /tmp/ray instead" in log.read_text()


def test_ctrl_c_while_libraries_are_imported_is_one_line():
    process = subprocess.Popen(
        [sys.executable, "-m", "platform.score", "--show-config"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(0.8)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have finished before the interrupt
        assert said.splitlines() in ([], ["interrupted; run the same command again to continue"]), said
        assert process.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265", "nonsense"])
def test_a_wrong_address_is_one_line_of_the_program(address):
    found = run_python(
        """
from platform.engine.errors import UserError
from platform.engine.runtime.ray_session import RuntimeConfig, connect
try:
    connect(RuntimeConfig())
except UserError as error:
    print(error)
""",
        RAY_ADDRESS=address,
    )
    assert len(found.stdout.splitlines()) == 1 and found.stderr == "" and address in found.stdout


def test_an_address_given_to_a_process_that_is_connected_changes_nothing(ray_session):
    connect(RuntimeConfig(address="127.0.0.1:1"))  # the Ray of the tests keeps running
    assert ray_session.is_initialized()
