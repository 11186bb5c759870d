"""S3-compatible object stores: settings, credentials, the two clients and the operations that only boto3 offers.

pyarrow reads (ranged requests, in C++). boto3 writes, lists and administrates: an interrupted boto3 upload is never
published, while closing a pyarrow stream publishes the part that was written. Both take their credentials from boto3's
standard chain (environment, shared files and profiles, SSO, web identity, container and instance roles). Credentials stay in
the process that uses them. Only the StorageConfig is pickled, printed or stored, and it holds no credentials.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto_errors
import pyarrow.fs as pafs
from botocore.config import Config as BotoConfig

from reidssl.checks import at_least, positive

# Credential sources (botocore's method names) that pyarrow finds and refreshes by itself.
NATIVE_METHODS = {"env", "iam-role", "container-role"}
PAGE_SIZE = 1000  # largest number of keys that S3 lists or deletes in one request


@dataclass(kw_only=True)
class StorageConfig:
    """How to reach object storage. It never holds credentials: they come from the standard AWS chain."""

    endpoint_url: str = ""
    """S3-compatible server ("http://host:9000"); empty: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else AWS."""
    region: str = ""
    """Region; empty: the region of the environment or the profile, else that of the bucket."""
    profile: str = ""
    """Profile of the AWS configuration files; empty: AWS_PROFILE or the default profile."""
    anonymous: bool = False
    """Send unsigned requests, for public buckets."""
    create_bucket: bool = False
    """Create the bucket of an output if it does not exist."""
    max_attempts: int = 5
    """Attempts of one request, with growing pauses between them."""
    connect_timeout_s: float = 5.0
    """Seconds to wait for a connection."""
    request_timeout_s: float = 20.0
    """Seconds to wait for a response, or for the next bytes of it."""
    retry_timeout_s: float = 300.0
    """Seconds for which a program waits for storage that does not answer. Training and scoring retry as long while storage fails
    or is full. After that they stop."""

    def __post_init__(self) -> None:
        if self.endpoint_url:
            parts = urlsplit(self.endpoint_url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(
                    "endpoint_url must begin with http:// or https:// and name a host: "
                    f"got {parts.scheme!r} and host {parts.hostname!r}"
                )
            if "@" in parts.netloc:
                raise ValueError(
                    "endpoint_url must not hold credentials: leave out the part before '@'; use the "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY variables or a profile"
                )
        at_least(1, max_attempts=self.max_attempts)
        positive(connect_timeout_s=self.connect_timeout_s, request_timeout_s=self.request_timeout_s)
        at_least(0, "(no second try)", retry_timeout_s=self.retry_timeout_s)

    @property
    def endpoint(self) -> str:
        """URL of the endpoint in use, without a trailing slash; "" for AWS itself."""
        found = self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        return found.rstrip("/")


class _S3FileSystem(pafs.S3FileSystem):
    """pyarrow's S3 filesystem, pickled as its configuration so that credentials stay in this process."""

    def __init__(self, config: StorageConfig, bucket: str, **options: Any) -> None:
        super().__init__(**options)
        self._recipe = (config, bucket)

    def __reduce__(self) -> tuple[Any, ...]:
        return filesystem, self._recipe


def filesystem(config: StorageConfig, bucket: str) -> pafs.S3FileSystem:
    """The pyarrow filesystem for `bucket`, cached per process and rebuilt when temporary credentials change.

    Raises botocore's NoCredentialsError if there are no credentials and `config.anonymous` is false.
    """
    keys: tuple[str, ...] | None = None
    if not config.anonymous:
        credentials = _session(config.profile).get_credentials()
        if credentials is None:
            raise boto_errors.NoCredentialsError()
        if credentials.method not in NATIVE_METHODS or config.profile:
            frozen = credentials.get_frozen_credentials()
            keys = (frozen.access_key, frozen.secret_key, frozen.token or "")
    return _filesystem(astuple(config), config.endpoint, bucket, keys)


@lru_cache(maxsize=8)
def _filesystem(values: tuple[Any, ...], endpoint: str, bucket: str, keys: tuple[str, ...] | None) -> pafs.S3FileSystem:
    config = _config(values)
    parts = urlsplit(endpoint)
    options: dict[str, Any] = {
        "anonymous": config.anonymous,
        "region": _region(config, bucket),
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=config.max_attempts),
        "connect_timeout": config.connect_timeout_s,
        "request_timeout": config.request_timeout_s,
    }
    if endpoint:
        options |= {"scheme": parts.scheme, "endpoint_override": parts.netloc + parts.path}
    if os.environ.get("AWS_CA_BUNDLE"):
        options["tls_ca_file_path"] = os.environ["AWS_CA_BUNDLE"]
    if keys:
        options |= {"access_key": keys[0], "secret_key": keys[1], "session_token": keys[2] or None}
    return _S3FileSystem(config, bucket, **options)


def client(config: StorageConfig) -> Any:
    """The boto3 S3 client for `config`, cached per process (boto3 clients are thread-safe)."""
    return _client(astuple(config), config.endpoint)


@lru_cache(maxsize=8)
def _client(values: tuple[Any, ...], endpoint: str) -> Any:
    from botocore import UNSIGNED

    config = _config(values)
    options: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": config.max_attempts},
        "connect_timeout": config.connect_timeout_s,
        "read_timeout": config.request_timeout_s,
    }
    if endpoint:  # many S3-compatible servers support neither virtual hosts nor the newer checksums
        options |= {
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    if config.anonymous:
        options["signature_version"] = UNSIGNED
    session = _session(config.profile)
    region = config.region or session.region_name or ("us-east-1" if endpoint else None)
    return session.client("s3", endpoint_url=endpoint or None, region_name=region, config=BotoConfig(**options))


@lru_cache(maxsize=8)
def _session(profile: str) -> Any:
    return boto3.Session(profile_name=profile or None)


def _config(values: tuple[Any, ...]) -> StorageConfig:
    return StorageConfig(**dict(zip(StorageConfig.__dataclass_fields__, values, strict=True)))


def _region(config: StorageConfig, bucket: str) -> str:
    """The configured region, else that of the environment or profile, else the one that AWS reports for the bucket."""
    region = config.region or os.environ.get("AWS_REGION") or _session(config.profile).region_name
    if region or config.endpoint:
        return region or "us-east-1"
    return pafs.resolve_s3_region(bucket)


def list_objects(config: StorageConfig, bucket: str, prefix: str, recursive: bool = True) -> Iterator[tuple[str, int]]:
    """Yields (key, size in bytes) of every object whose key begins with `prefix`, a thousand per request.

    recursive: false leaves out keys with a slash after `prefix`.
    """
    options: dict[str, Any] = {"PaginationConfig": {"PageSize": PAGE_SIZE}}
    if not recursive:
        options["Delimiter"] = "/"
    for page in client(config).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options):
        yield from ((item["Key"], item["Size"]) for item in page.get("Contents", []))


def make_bucket(config: StorageConfig, bucket: str) -> None:
    """Create `bucket` in the configured region. Does nothing if this account owns it already."""
    s3 = client(config)
    region = s3.meta.region_name
    place = {} if region in (None, "us-east-1", "aws-global") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=bucket, **place)


def abort_uploads(config: StorageConfig, bucket: str, prefix: str, older_than_h: float) -> int:
    """Abort the multipart uploads below `prefix` that began more than `older_than_h` hours ago. Returns their number."""
    s3, before = client(config), datetime.now(UTC) - timedelta(hours=older_than_h)
    pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    old = [upload for page in pages for upload in page.get("Uploads", []) if upload["Initiated"] <= before]
    for upload in old:
        s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return len(old)
