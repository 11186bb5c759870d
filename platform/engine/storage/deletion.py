"""Delete many objects of an object store, also where it has no request for many of them at once.

DeleteObjects takes a thousand keys. Google Cloud's S3 interface does not have it, and some servers want it with a Content-MD5
header, which boto3 no longer sends. Such a store is asked for one object at a time from then on.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from typing import Any

from botocore.exceptions import ClientError

from platform.engine.storage.s3 import PAGE_SIZE, StorageConfig, client

NOT_TOGETHER = {"NotImplemented", "MissingContentMD5", "InvalidRequest", "MethodNotAllowed", "501", "405"}
"""Error codes of a store that refuses DeleteObjects as such. The numbers stand for answers without a text."""
AT_A_TIME = 8  # requests; fewer than the connections that a boto3 client keeps open
_one_by_one: set[tuple[Any, ...]] = set()


def delete_objects(config: StorageConfig, bucket: str, keys: list[str]) -> None:
    """Delete objects. Missing keys are no error. Raises OSError or a ClientError if an object cannot be deleted."""
    store = (*astuple(config), config.endpoint)
    for start in range(0, len(keys), PAGE_SIZE):
        some = keys[start : start + PAGE_SIZE]
        if len(some) > 1 and store not in _one_by_one:
            try:
                _delete_together(config, bucket, some)
                continue
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in NOT_TOGETHER:
                    raise
                _one_by_one.add(store)
        with ThreadPoolExecutor(min(AT_A_TIME, len(some))) as pool:
            list(pool.map(lambda key: _delete(config, bucket, key), some))


def _delete_together(config: StorageConfig, bucket: str, keys: list[str]) -> None:
    chunk = [{"Key": key} for key in keys]
    answer = client(config).delete_objects(Bucket=bucket, Delete={"Objects": chunk, "Quiet": True})
    if answer.get("Errors"):
        first = answer["Errors"][0]
        raise OSError(f"{first.get('Key')}: {first.get('Code')} {first.get('Message', '')}")


def _delete(config: StorageConfig, bucket: str, key: str) -> None:
    try:
        client(config).delete_object(Bucket=bucket, Key=key)
    except ClientError as error:  # Google Cloud says so of a missing key, AWS does not
        if error.response.get("Error", {}).get("Code") not in ("NoSuchKey", "404"):
            raise
