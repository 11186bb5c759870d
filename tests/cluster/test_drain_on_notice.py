"""The spot watcher against an HTTP server that answers like the clouds' metadata services."""

import fcntl
import json
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.scripts.scripts import cli

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cluster"))

import drain_on_notice


class Metadata(BaseHTTPRequestHandler):
    """Answers of EC2 (session token required) and Compute Engine (header required); `server.announced` sets them."""

    def answer(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        valid = self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        self.answer(200, "session") if valid else self.answer(400)

    def do_GET(self) -> None:
        announced = self.server.announced
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers.get("X-aws-ec2-metadata-token") != "session":
                self.answer(401)
            elif announced is None:
                self.answer(404)
            else:
                moment = datetime.now(UTC) + timedelta(seconds=announced)
                self.answer(200, json.dumps({"action": "terminate", "time": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}))
        elif self.path == "/computeMetadata/v1/instance/preempted" and self.headers.get("Metadata-Flavor") == "Google":
            self.answer(200, "FALSE" if announced is None else "TRUE")
        else:
            self.answer(403)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    running = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    running.announced = None
    running.url = f"http://127.0.0.1:{running.server_address[1]}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A `ray` on the PATH that fails the first time and records its arguments; returns the file with the records."""
    notes, tool = tmp_path / "calls.txt", tmp_path / "bin" / "ray"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$RAY_ADDRESS $@" >> {notes}\ntest "$(wc -l < {notes})" -gt 1\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    return notes


def test_there_is_no_notice_until_the_cloud_gives_one(server):
    assert drain_on_notice.aws_notice(server.url) is None
    assert drain_on_notice.gcp_notice(server.url) is None
    server.announced = 100
    assert 97 <= drain_on_notice.aws_notice(server.url) <= 100
    assert drain_on_notice.gcp_notice(server.url) == 30


def test_ray_knows_the_drain_command():
    program, command, *options = drain_on_notice.drain_command(120.0)
    assert program == "ray"
    parsed = cli.commands[command].make_context(command, options).params
    assert parsed["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert parsed["deadline_remaining_seconds"] == 110
    # Ray refuses a negative deadline, so a late notice must not give one.
    assert drain_on_notice.drain_command(-3.0)[-1] == "1"


def test_the_watcher_survives_a_silent_metadata_service_and_tries_the_drain_again(server, calls):
    answers = iter([ConnectionRefusedError("silent"), None, 60.0])

    def notice():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert drain_on_notice.watch(notice, "head:6379", interval_s=0.01) == 0
    first, second = calls.read_text().splitlines()
    assert first.startswith("head:6379 drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    # The second attempt has less time left: one second of waiting and the start of two processes.
    assert int(first.split()[-1]) in {49, 50} and 40 <= int(second.split()[-1]) < int(first.split()[-1])


def test_the_program_drains_on_a_notice_and_runs_once_per_machine(server, calls, tmp_path, monkeypatch, capsys):
    lock = tmp_path / "lock"
    arguments = f"--cloud aws --address head:6379 --endpoint {server.url} --interval 0.01 --lock {lock}"
    monkeypatch.setattr(sys, "argv", ["drain_on_notice.py", *arguments.split()])
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert drain_on_notice.main() == 0
    assert "another watcher" in capsys.readouterr().out and not calls.exists()
    server.announced = 90
    assert drain_on_notice.main() == 0
    assert "head:6379 drain-node" in calls.read_text()
