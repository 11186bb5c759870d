"""Storage: one suite on a local folder and on an S3 server.

The S3 server is moto, in this process: a real HTTP server that both clients (pyarrow's C++ client and boto3) reach
over a socket, with buckets, listings, multipart uploads and S3's own error codes. Among the small servers that install
as a Python package, it is the only one that passed listing, directory markers and checksums.
"""

import http.server
import os
import pickle
import re
import subprocess
import threading
import urllib.request

import boto3
import pyarrow.fs as pafs
import pytest

from platform.engine.config.compose import to_dataclass
from platform.engine.errors import ConfigError, NotFoundError, StorageError, UserError
from platform.engine.storage.location import StorageConfig, abort_incomplete_uploads, create_bucket, open_storage
from platform.engine.storage.retry import patiently
from tests.platform import survival


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return open_storage(str(tmp_path / "data"))
    server = request.getfixturevalue("s3")
    return open_storage(f"{server.uri}/some/prefix", StorageConfig(endpoint_url=server.endpoint_url))


def test_bytes_text_and_json_come_back(root):
    root.joinpath("a/b.bin").write_bytes(b"\x00\xff" * 1000)
    (root / "note.txt").write_text("käse")
    (root / "value.json").write_json({"list": [1, 2.5, None]})
    assert root.joinpath("a/b.bin").read_bytes() == b"\x00\xff" * 1000
    assert (root / "note.txt").read_text() == "käse"
    assert (root / "value.json").read_json() == {"list": [1, 2.5, None]}
    assert root.joinpath("a", "b.bin").size() == 2000
    assert root.joinpath("a/b.bin").name == "b.bin"


def test_overwriting_replaces_the_whole_content(root):
    file = root / "x"
    file.write_bytes(b"long old content")
    file.write_bytes(b"new")
    assert file.read_bytes() == b"new"


def test_listing_is_sorted_recursive_and_relative(root):
    for name in ("b/2", "a", "b/1", "b/c/3"):
        root.joinpath(name).write_bytes(name.encode())
    assert [(item.name, item.bytes) for item in root.list()] == [("a", 1), ("b/1", 3), ("b/2", 3), ("b/c/3", 5)]
    assert [item.name for item in root.list(recursive=False)] == ["a"]
    assert [item.name for item in (root / "b").list()] == ["1", "2", "c/3"]
    assert (root / "nothing").list() == []


def test_a_neighbor_with_the_same_beginning_is_not_listed_or_deleted(root):
    (root / "run/x").write_bytes(b"1")
    (root / "run2/x").write_bytes(b"2")
    assert [item.name for item in (root / "run").list()] == ["x"]
    (root / "run").delete()
    assert [item.name for item in root.list()] == ["run2/x"]


def test_more_objects_than_one_request_holds(root, monkeypatch):
    for module in ("s3", "deletion"):
        monkeypatch.setattr(f"platform.engine.storage.{module}.PAGE_SIZE", 10)
    for index in range(25):
        (root / f"d/{index:03d}").write_bytes(b"")
    assert len(root.list()) == 25
    (root / "d").delete()
    assert root.list() == []


def test_exists_is_file_and_delete(root):
    (root / "d/f").write_bytes(b"1")
    assert (root / "d/f").exists() and (root / "d/f").is_file()
    assert (root / "d").exists() and not (root / "d").is_file()
    assert not (root / "e").exists()
    (root / "d/f").delete()
    (root / "d/f").delete()  # a second time is no error
    assert not (root / "d/f").exists()


def test_a_writer_that_fails_leaves_the_old_content_and_no_debris(root):
    file = root / "x"
    file.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="crash"), file.open_output() as out:
        out.write(b"half of the new")
        raise RuntimeError("crash")
    assert file.read_bytes() == b"old"
    assert [item.name for item in root.list()] == ["x"]
    if not root.is_s3:
        assert len(list(pafs.LocalFileSystem().get_file_info(pafs.FileSelector(root.path)))) == 1


def test_a_large_object_in_parts(root):
    data = bytes(range(256)) * (160 * 1024)  # 40 MiB: above the multipart threshold
    (root / "large").write_bytes(data)
    assert (root / "large").size() == len(data)
    with (root / "large").open_input() as file:
        file.seek(len(data) - 300)
        assert file.read() == data[-300:]


def test_missing_things_say_so(root):
    with pytest.raises(NotFoundError, match=r"cannot read .*nothing.*does not exist"):
        (root / "nothing").read_bytes()
    with pytest.raises(NotFoundError, match="nothing"):
        (root / "nothing").size()
    (root / "bad.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"bad\.json.*not valid JSON \(line 1"):
        (root / "bad.json").read_json()
    (root / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(StorageError, match="not UTF-8"):
        (root / "bad.txt").read_text()


@pytest.mark.parametrize("part", ["..", "a/../../b", "/etc", "", ".", "a//b", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(root, part):
    with pytest.raises(StorageError, match="refused"):
        root.joinpath(part)


def test_pickles_without_connection_or_credentials(root):
    (root / "x").write_bytes(b"1")
    for value in (root, root.filesystem):
        assert b"testing" not in pickle.dumps(value)
    copy = pickle.loads(pickle.dumps(root))
    assert copy == root and (copy / "x").read_bytes() == b"1"
    filesystem = pickle.loads(pickle.dumps(root.filesystem))
    assert filesystem.open_input_file((root / "x").path).read() == b"1"
    assert "testing" not in repr(root) + str(root) + repr(root.config)


def test_works_inside_a_ray_task(root, ray_session):
    (root / "x").write_bytes(b"abc")

    @ray_session.remote(num_cpus=0)
    def double(location):
        (location / "y").write_bytes((location / "x").read_bytes() * 2)

    ray_session.get(double.remote(root))
    assert (root / "y").read_bytes() == b"abcabc"


def test_the_root_is_not_deleted(s3):
    with pytest.raises(StorageError, match="refusing"):
        open_storage(s3.uri, StorageConfig(endpoint_url=s3.endpoint_url)).delete()
    with pytest.raises(StorageError, match="refusing"):
        open_storage("/").delete()


# ---- URIs


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_storage("runs/x").uri == str(tmp_path / "runs/x")
    assert open_storage(f"file://{tmp_path}/a%20b").path == str(tmp_path / "a b")
    assert open_storage("s3://bucket/a/b/").uri == "s3://bucket/a/b"


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("gs://bucket/x", "'gs://' is not supported"),
        ("", "not a location"),
        ("s3:///x", "does not name a bucket"),
        ("s3://key:secret@bucket/x", "must not hold credentials"),
        ("s3://bucket/../x", "refused"),
    ],
)
def test_other_uris_are_refused(uri, text):
    with pytest.raises(StorageError, match=text) as caught:
        open_storage(uri)
    assert "secret@" not in str(caught.value)


# ---- S3 only: errors of a server


def test_missing_bucket(s3):
    root = open_storage("s3://no-such-bucket-here/x", StorageConfig(endpoint_url=s3.endpoint_url))
    for attempt in (lambda: (root / "f").write_bytes(b"1"), (root / "f").read_bytes, root.list, root.prepare_output):
        with pytest.raises(StorageError, match=r"no bucket 'no-such-bucket-here' at http.*create_bucket=true"):
            attempt()


def test_create_bucket_when_told_to(s3):
    config = StorageConfig(endpoint_url=s3.endpoint_url, create_bucket=True)
    root = open_storage(f"{s3.uri}-more/x", config)
    root.prepare_output()
    create_bucket(root.uri, config)  # a second time is no error
    (root / "f").write_bytes(b"1")
    assert (root / "f").read_bytes() == b"1"


def test_unreachable_endpoint():
    config = StorageConfig(endpoint_url="http://127.0.0.1:9", max_attempts=2, connect_timeout_s=1.0)
    root = open_storage("s3://bucket/x", config)
    for attempt in (root.prepare_output, (root / "f").read_bytes, lambda: (root / "f").write_bytes(b"1")):
        with pytest.raises(StorageError, match=r"nothing answers at http://127\.0\.0\.1:9 .*storage\.endpoint_url"):
            attempt()


def test_no_credentials(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    root = open_storage(s3.uri, StorageConfig(endpoint_url=s3.endpoint_url, max_attempts=3))
    with fresh_clients():
        for attempt in (root.prepare_output, (root / "f").read_bytes):
            with pytest.raises(StorageError, match="no credentials were found"):
                attempt()


def test_unknown_profile(s3):
    root = open_storage(s3.uri, StorageConfig(endpoint_url=s3.endpoint_url, profile="nobody"))
    with pytest.raises(StorageError, match="no profile 'nobody'"):
        root.list()


def test_a_profile_is_used_and_not_pickled(s3, tmp_path, monkeypatch):
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = LABKEY\naws_secret_access_key = labsecret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    root = open_storage(s3.uri, StorageConfig(endpoint_url=s3.endpoint_url, profile="lab"))
    with fresh_clients():
        (root / "x").write_bytes(b"1")
        assert (root / "x").read_bytes() == b"1"
        pickled = pickle.dumps(root.filesystem)
        assert b"LABKEY" not in pickled and b"labsecret" not in pickled


def test_denied(s3, monkeypatch):
    """moto checks signatures and policies on request; the server then does not know the access key."""
    root = open_storage(s3.uri, StorageConfig(endpoint_url=s3.endpoint_url, max_attempts=1))
    (root / "f").write_bytes(b"1")

    def require_permission(after: str) -> None:
        request = urllib.request.Request(
            f"{s3.endpoint_url}/moto-api/reset-auth", data=after.encode(), method="POST", headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).read()

    require_permission("0")
    try:
        for attempt in ((root / "f").read_bytes, lambda: (root / "f").write_bytes(b"2")):
            with pytest.raises(StorageError, match="refuses the credentials: it does not know the access key") as caught:
                attempt()
            assert "testing" not in str(caught.value)
    finally:
        require_permission("inf")


def test_incomplete_uploads_are_aborted(s3):
    config = StorageConfig(endpoint_url=s3.endpoint_url)
    server = boto3.client("s3", endpoint_url=s3.endpoint_url)
    for key in ("run/a", "run/b", "run2/c"):
        server.create_multipart_upload(Bucket=s3.bucket, Key=key)
    years_h = 100 * 365 * 24.0  # moto dates every upload to 2010
    assert abort_incomplete_uploads(f"{s3.uri}/run", config, older_than_h=years_h) == 0
    assert abort_incomplete_uploads(f"{s3.uri}/run", config, older_than_h=24) == 2
    left = server.list_multipart_uploads(Bucket=s3.bucket).get("Uploads", [])
    assert [upload["Key"] for upload in left] == ["run2/c"]
    assert abort_incomplete_uploads("/tmp/x") == 0


# ---- local only, and the configuration


def test_a_folder_link_to_a_parent_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").write_bytes(b"1")
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert [item.name for item in open_storage(str(tmp_path)).list()] == ["a/f"]


def test_a_file_that_goes_while_its_folder_is_listed(tmp_path):
    for number in range(300):
        (tmp_path / f"{number:03d}").write_bytes(b"1")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    listing = open_storage(str(tmp_path))._list_local(recursive=True)
    first = next(listing)
    for path in tmp_path.iterdir():
        if path.name != first.name:
            path.unlink()
    assert list(listing) == [] and open_storage(str(tmp_path)).list() == [first]


def test_local_trouble_in_plain_words(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(StorageError, match=r"cannot write .*file"):
        open_storage(str(tmp_path / "file/below")).write_bytes(b"1")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "it is a file, a folder is needed"),
        ("file/run", r".*/file is a file, a folder is needed"),
        ("file/a/b/run", r".*/file is a file, a folder is needed"),
        ("nowhere/run", r".*/nowhere is a link that leads nowhere"),
        ("made/" + "x" * 300, "File name too long"),
        ("/proc/run", "/proc takes no new folders"),
        ("/proc/self", "/proc/self takes no new files"),
        ("/sys/kernel/run", "/sys/kernel|permission|not permitted"),
        ("/dev/null/run", r"/dev/null is a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_known_before(tmp_path, place, reason):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    output = os.path.join(tmp_path, place)
    with pytest.raises(StorageError, match=rf"^cannot write to {re.escape(output)}: .*({reason})"):
        open_storage(output).prepare_output()
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "old")
    for place in ("old", "new/a/b", "link/c", "."):
        open_storage(str(tmp_path / place)).prepare_output()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "old"]


def test_a_full_and_a_read_only_disk_are_outputs_that_cannot_be_written(tmp_path):
    with survival.small_disk(tmp_path / "disk", 1) as disk:
        (disk / "all").write_bytes(b"1" * (1 << 20))
        with pytest.raises(StorageError, match="No space left on device") as caught:
            open_storage(f"{disk}/run").prepare_output()
        assert caught.value.transient and os.listdir(disk) == ["all"]
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match="Read-only file system"):
            open_storage(f"{disk}/run").prepare_output()


class ReadOnlyBucket(http.server.BaseHTTPRequestHandler):
    """A bucket that exists and refuses writes."""

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path.strip("/").count("/") == 0 else 404)
        self.end_headers()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *arguments) -> None:
        pass


def test_a_bucket_that_refuses_is_known_before():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ReadOnlyBucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = StorageConfig(endpoint_url=f"http://127.0.0.1:{server.server_port}", max_attempts=1)
        with pytest.raises(StorageError, match=r"cannot write to s3://bucket/run: permission denied for this object"):
            open_storage("s3://bucket/run", config).prepare_output()
        server.shutdown()


def test_the_probe_of_a_bucket_leaves_nothing(s3):
    root = open_storage(f"{s3.uri}/run", StorageConfig(endpoint_url=s3.endpoint_url))
    root.prepare_output()
    assert root.parent.uri == s3.uri and root.parent.list() == []
    root.write_bytes(b"1")
    with pytest.raises(StorageError, match="it is an object, a prefix is needed"):
        root.prepare_output()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"endpoint_url": "minio:9000"}, "endpoint_url must begin with http"),
        ({"endpoint_url": "http://me:hunter2@minio:9000"}, "must not hold credentials"),
        ({"max_attempts": 0}, "max_attempts must be at least 1: got 0"),
        ({"connect_timeout_s": 0.0}, "connect_timeout_s must be positive"),
    ],
)
def test_bad_settings(values, text):
    with pytest.raises(ConfigError, match=text) as caught:
        to_dataclass(StorageConfig, values)
    assert isinstance(caught.value, UserError) and "hunter2" not in str(caught.value)


class fresh_clients:
    """Clear the cached clients before and after, for tests that change the credentials."""

    def __enter__(self):
        self._forget()

    def __exit__(self, *_):
        self._forget()

    def _forget(self):
        from platform.engine.storage import s3

        for cached in (s3._client, s3._session, s3._filesystem):
            cached.cache_clear()


# ---- retries


class Fails:
    """Raises a given number of times, then returns 7."""

    def __init__(self, times: int, transient: bool = True) -> None:
        self.left, self.transient, self.calls = times, transient, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.left:
            raise StorageError("cannot read it: nothing answers", transient=self.transient)
        return 7


def test_what_may_pass_is_tried_again():
    lines: list[str] = []
    action = Fails(2)
    assert patiently(action, 30, lines.append) == 7 and action.calls == 3
    assert [line.split(";")[-1] for line in lines] == [
        " trying again for 30 s (storage.retry_timeout_s)",
        f"storage works again after {1 + 0.5:.0f} s",
    ]


def test_patience_ends_and_what_cannot_pass_is_not_tried_again():
    action = Fails(9)
    with pytest.raises(StorageError, match="nothing answers"):
        patiently(action, 0.6)
    assert action.calls == 2
    action = Fails(9, transient=False)
    with pytest.raises(StorageError):
        patiently(action, 30)
    assert action.calls == 1


def test_what_may_pass_and_what_may_not(tmp_path, s3, monkeypatch):
    def error_of(action) -> StorageError:
        with pytest.raises(StorageError) as caught:
            action()
        return caught.value

    assert not error_of((open_storage(str(tmp_path)) / "none").read_bytes).transient
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert error_of(lambda: (open_storage(str(tmp_path)) / "x").write_bytes(b"1")).transient
    there = StorageConfig(endpoint_url=s3.endpoint_url)
    assert not error_of((open_storage(s3.uri, there) / "none").read_bytes).transient
    assert not error_of((open_storage("s3://no-such-bucket-here/x", there)).read_bytes).transient
    nobody = StorageConfig(endpoint_url="http://127.0.0.1:9", max_attempts=1, connect_timeout_s=0.5)
    assert error_of((open_storage(s3.uri, nobody) / "x").read_bytes).transient
