"""Stores that do not answer, refuse the connection, or refuse the keys: said within seconds, in one line."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from platform.engine.config.compose import load_config
from platform.engine.errors import StorageError
from platform.engine.schemas.ingest_settings import IngestConfig
from platform.engine.storage import first_answer
from platform.engine.storage.location import StorageConfig, open_storage
from platform.ingest import main as ingest


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(first_answer, "_answered", set())
    monkeypatch.setattr(first_answer, "_tell", None)
    monkeypatch.setattr(first_answer, "PAUSE_S", 0.1)


@pytest.fixture
def silent() -> Iterator[str]:
    """URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def config_of(endpoint: str, **more) -> StorageConfig:
    return StorageConfig(endpoint_url=endpoint, **({"request_timeout_s": 0.4, "retry_timeout_s": 4.0} | more))


def test_a_silent_store_is_named_at_once_and_given_up_in_time(silent):
    lines: list[tuple[float, str]] = []
    started = time.monotonic()
    first_answer.wait_for_silent_stores(lambda line: lines.append((time.monotonic() - started, line)))
    with pytest.raises(StorageError, match=rf"cannot read s3://bucket/x: nothing answers at {silent} \(ReadTimeoutError, \d s\)"):
        open_storage("s3://bucket/x", config_of(silent)).read_bytes()
    took = time.monotonic() - started
    assert [line for _, line in lines] == [f"{silent} does not answer; waiting for it for 4 s (storage.retry_timeout_s)"]
    assert lines[0][0] < 3.5 and 3 < took < 10


def test_the_first_word_comes_after_seconds_whatever_the_timeouts(silent, monkeypatch):
    """A user may allow minutes for a request; a name server may take minutes, which no timeout of the client limits."""
    assert first_answer.FIRST_WORD_S < 15
    monkeypatch.setattr(first_answer, "FIRST_WORD_S", 0.5)
    lines: list[str] = []
    first_answer.wait_for_silent_stores(lines.append)
    started = time.monotonic()
    with pytest.raises(StorageError, match="nothing answers"):
        open_storage("s3://bucket/x", config_of(silent, request_timeout_s=600)).list()
    assert len(lines) == 1 and time.monotonic() - started < 10


def test_a_task_does_not_wait(silent):
    """Its program knows already, and whoever started the task retries what is transient."""
    started = time.monotonic()
    with pytest.raises(StorageError, match="nothing answers") as error:
        open_storage("s3://bucket/x", config_of(silent, retry_timeout_s=600)).read_bytes()
    assert error.value.transient and time.monotonic() - started < 10


def test_a_closed_port_is_an_error_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    lines: list[str] = []
    first_answer.wait_for_silent_stores(lines.append)
    started = time.monotonic()
    with pytest.raises(StorageError, match=rf"nothing answers at {closed} \(EndpointConnectionError\)"):
        open_storage("s3://bucket/x", StorageConfig(endpoint_url=closed)).read_bytes()
    assert time.monotonic() - started < 10 and not lines


def test_a_store_that_answers_late_is_used(silent, s3, monkeypatch):
    """The silent server ends and the real one takes its place, as when a store restarts."""
    (open_storage(s3.uri, config_of(s3.endpoint_url)) / "f").write_bytes(b"1")
    asked = []
    ask = first_answer._ask

    def first_silent(config, bucket):
        asked.append(bucket)
        return ask(config_of(silent) if len(asked) < 3 else config, bucket)

    monkeypatch.setattr(first_answer, "_ask", first_silent)
    lines: list[str] = []
    first_answer.wait_for_silent_stores(lines.append)
    config = config_of(s3.endpoint_url, retry_timeout_s=30, request_timeout_s=5)
    assert (open_storage(s3.uri, config) / "f").read_bytes() == b"1" and len(lines) == 1 and len(asked) == 3
    assert (open_storage(s3.uri, config) / "f").exists() and len(asked) == 3  # once a process


def test_inputs_are_checked_before_the_output_is_touched(silent, tmp_path):
    settings = [f"storage.endpoint_url={silent}", "storage.request_timeout_s=0.4", "raw.path=s3://bucket/people"]
    with pytest.raises(StorageError, match="nothing answers"):
        ingest(load_config(IngestConfig, "ingest", [f"output={tmp_path}/out", *settings]))
    assert not (tmp_path / "out").exists()


def answer(code: str) -> type[http.server.BaseHTTPRequestHandler]:
    """Handler that denies every request as S3 does: HEAD with the status alone, GET with an error code."""

    class Deny(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.end_headers()

        def do_GET(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>denied</Message></Error>".encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments) -> None:
            pass

    return Deny


@pytest.mark.parametrize(
    "code, words",
    [
        ("InvalidAccessKeyId", r"refuses the credentials: it does not know the access key\. Correct AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", r"refuses the credentials: the secret key is not that of the access key"),
        ("ExpiredToken", r"refuses the credentials: the session token has expired"),
        ("AccessDenied", r"permission denied for bucket 'bucket'"),
    ],
)
def test_wrong_keys_are_told_from_missing_rights(code, words):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer(code)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = open_storage("s3://bucket/x", config_of(f"http://127.0.0.1:{server.server_port}", max_attempts=1))
        for attempt in (root.read_bytes, root.prepare_output, root.list):
            with pytest.raises(StorageError, match=words) as error:
                attempt()
            assert "testing" not in str(error.value) and not error.value.transient
        server.shutdown()
