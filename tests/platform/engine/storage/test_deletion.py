"""Objects are deleted also where the store refuses to delete many of them in one request."""

import pytest
from botocore.awsrequest import AWSResponse

from platform.engine.errors import StorageError
from platform.engine.storage.location import StorageConfig, open_storage
from platform.engine.storage.s3 import client
from tests.platform.engine.storage.answers import refusal


class Refusing:
    """Answers DeleteObjects as Google Cloud does, in place of the server, and notes the other deletions. It can refuse these."""

    def __init__(self, config: StorageConfig, status: int, code: str) -> None:
        self.status, self.code, self.together, self.single, self.missing = status, code, 0, 0, ""
        events = client(config).meta.events
        events.register("before-send.s3.DeleteObjects", self.on_together)
        events.register("before-send.s3.DeleteObject", self.on_single)

    def on_together(self, request, **_) -> AWSResponse:
        self.together += 1
        return refusal(request, self.status, self.code)

    def on_single(self, request, **_) -> AWSResponse | None:
        self.single += 1
        return refusal(request, 404, self.missing) if self.missing else None


def config_of(s3, retry_timeout_s: float) -> StorageConfig:
    """Settings with a client of their own: other tests must not meet its answers."""
    return StorageConfig(endpoint_url=s3.endpoint_url, max_attempts=1, retry_timeout_s=retry_timeout_s)


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "NotImplemented"), (411, "MissingContentMD5"), (405, "MethodNotAllowed")],
)
def test_a_store_without_deletion_of_many_is_asked_once(s3, status, code):
    config = config_of(s3, status)
    store = Refusing(config, status, code)
    root = open_storage(f"{s3.uri}/run", config)
    for _ in range(2):
        for number in range(3):
            (root / f"{number}").write_bytes(b"1")
        root.delete()
        assert root.list() == []
    assert (store.together, store.single) == (1, 8)  # with the name of the folder, which may be an object


def test_a_single_object_needs_no_request_for_many(s3):
    config = config_of(s3, 201)
    store = Refusing(config, 400, "NotImplemented")
    file = open_storage(f"{s3.uri}/file", config)
    file.write_bytes(b"1")
    file.delete()
    store.missing = "NoSuchKey"  # Google Cloud's answer where AWS has none
    file.delete()
    assert not file.exists() and (store.together, store.single) == (0, 2)


def test_other_refusals_are_errors(s3):
    config = config_of(s3, 202)
    store = Refusing(config, 403, "AccessDenied")
    root = open_storage(f"{s3.uri}/run", config)
    (root / "a").write_bytes(b"1")
    with pytest.raises(StorageError, match=r"cannot delete .*/run: permission denied"):
        root.delete()
    store.missing = "NoSuchBucket"
    with pytest.raises(StorageError, match=r"cannot delete .*/none: .*NoSuchBucket"):
        (root / "none").delete()
    assert (store.together, store.single) == (1, 1)
