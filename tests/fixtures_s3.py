"""An S3 server on loopback, shared by the tests that need object storage.

It is moto: a real HTTP server for both clients (pyarrow's C++ client and boto3), with listings, multipart uploads, signatures and
S3's error codes. Among the small servers that were tried it is the only one without a bug in what the platform uses. rclone,
localbucket and s3rver failed on directory markers, listings or checksums.
"""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

# Set at import, before Ray starts: its workers inherit these credentials, and no test sees the user's real ones.
for _name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[_name]
os.environ.update(
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing-secret",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
    AWS_SHARED_CREDENTIALS_FILE="/nonexistent",
    AWS_CONFIG_FILE="/nonexistent",
)


@dataclass(frozen=True)
class S3Server:
    """Address of the server and a bucket for one test."""

    endpoint_url: str
    bucket: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of a moto server in this process."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str) -> S3Server:
    """The server with a fresh, empty bucket."""
    from platform.engine.storage.location import StorageConfig, create_bucket

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    create_bucket(f"s3://{bucket}", StorageConfig(endpoint_url=s3_endpoint))
    return S3Server(endpoint_url=s3_endpoint, bucket=bucket)
