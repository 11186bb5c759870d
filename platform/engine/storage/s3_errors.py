"""Explain failed requests to an object store.

pyarrow reports the same text for many causes (a missing bucket, a missing object and a wrong endpoint look alike). So the
cause is determined by a second, simple request: HeadBucket through boto3, whose errors have types. It is made once, with short
timeouts, because the failed request has waited long enough.
"""

import re
from dataclasses import replace
from typing import Any

import botocore.exceptions as boto_errors
import pyarrow as pa
from boto3.exceptions import Boto3Error

from platform.engine.errors import NotFoundError, StorageError
from platform.engine.storage.s3 import StorageConfig, client

HEAD_CONNECT_S, HEAD_ANSWER_S = 4.0, 8.0
S3_ERRORS = (OSError, boto_errors.BotoCoreError, boto_errors.ClientError, Boto3Error)
UNREACHABLE = (boto_errors.ConnectionError, boto_errors.HTTPClientError, boto_errors.ProxyConnectionError)
SILENT = (boto_errors.ConnectTimeoutError, boto_errors.ReadTimeoutError)
REMOVED = re.compile("AWS Error (NO_SUCH_KEY|RESOURCE_NOT_FOUND)")  # after it was opened, in pyarrow's text
FROM_STORE = re.compile("AWS Error|curl")  # other errors of pyarrow are about the content of a file
REFUSED = re.compile(r"HTTP status 4(?!08|29)\d\d")  # 408: the request was too slow, 429: there were too many
WRONG_KEYS = {
    "InvalidAccessKeyId": "it does not know the access key",
    "SignatureDoesNotMatch": "the secret key is not that of the access key",
    "InvalidToken": "the session token is not valid",
    "ExpiredToken": "the session token has expired",
    "InvalidClientTokenId": "it does not know the access key",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
}
NO_CREDENTIALS = (
    boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError, boto_errors.CredentialRetrievalError,
    boto_errors.TokenRetrievalError, boto_errors.SSOError, boto_errors.UnauthorizedSSOTokenError,
)  # fmt: skip


def explain(uri: str, bucket: str, config: StorageConfig, action: str, error: Exception) -> StorageError:
    """A StorageError, to be raised, that explains the cause of a failed request.

    action, uri: the request, e.g. "write" and "s3://bucket/key"; error: its exception.
    """
    failed = f"cannot {action} {uri}"
    try:
        head_bucket(config, bucket)
    except NO_CREDENTIALS as cause:
        detail = "" if isinstance(cause, boto_errors.NoCredentialsError) else f" ({_first_line(cause)})"
        return StorageError(
            f"{failed}: no credentials were found{detail}. Set AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, choose a profile with storage.profile, run on a machine with a "
            "role, or set storage.anonymous=true for a public bucket"
        )
    except boto_errors.ProfileNotFound:
        return StorageError(
            f"{failed}: the AWS configuration files have no profile '{config.profile}'. Correct storage.profile or AWS_PROFILE"
        )
    except UNREACHABLE as cause:
        return unreachable(failed, config, type(cause).__name__)
    except boto_errors.ClientError as cause:
        return _explain_bucket(cause, failed, bucket, config)
    except boto_errors.BotoCoreError as cause:
        return StorageError(f"{failed}: {_first_line(cause)}", transient=True)
    if isinstance(error, FileNotFoundError) or _code(error) in ("404", "NoSuchKey") or REMOVED.search(str(error)):
        return NotFoundError(f"{failed}: it does not exist")
    if _code(error) in ("403", "AccessDenied") or "ACCESS_DENIED" in str(error) or "HTTP status 403" in str(error):
        return _denied(failed, "this object")
    return StorageError(f"{failed}: {_first_line(error)}", transient=may_pass(error))


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later. `error` is of boto3, or of pyarrow, whose errors have only a text."""
    if isinstance(error, boto_errors.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        return status >= 500 or status in (408, 429) or _code(error) == "RequestTimeout"
    if isinstance(error, OSError | pa.ArrowException) and not getattr(error, "errno", None):  # with one, it is of this machine
        return bool(FROM_STORE.search(str(error))) and not REFUSED.search(str(error))
    return True


def head_bucket(config: StorageConfig, bucket: str) -> None:
    """Ask for a bucket once, with short timeouts. Raises the errors of boto3."""
    quick = replace(
        config,
        max_attempts=1,
        connect_timeout_s=min(config.connect_timeout_s, HEAD_CONNECT_S),
        request_timeout_s=min(config.request_timeout_s, HEAD_ANSWER_S),
    )
    client(quick).head_bucket(Bucket=bucket)


def unreachable(failed: str, config: StorageConfig, detail: str) -> StorageError:
    """The error, to be raised, for a store that does not answer. failed: "cannot <action> <uri>"."""
    return StorageError(
        f"{failed}: nothing answers at {config.endpoint or 'AWS'} ({detail}). "
        "Check storage.endpoint_url (AWS_ENDPOINT_URL) and the network",
        transient=True,
    )


def _explain_bucket(cause: Any, failed: str, bucket: str, config: StorageConfig) -> StorageError:
    code, where = _code(cause), config.endpoint or "AWS"
    if code in ("404", "NoSuchBucket"):
        return StorageError(
            f"{failed}: there is no bucket '{bucket}' at {where}. Correct the URI or "
            "storage.endpoint_url, create the bucket, or set storage.create_bucket=true"
        )
    if code in ("301", "PermanentRedirect", "400"):
        return StorageError(
            f"{failed}: bucket '{bucket}' cannot be used with these settings ({code}): it is probably "
            "in another region, or the credentials are of another account. Set storage.region"
        )
    if code in ("403", "AccessDenied"):
        wrong = WRONG_KEYS.get(_reason_of_denial(config, bucket))
        if wrong:
            return StorageError(
                f"{failed}: {where} refuses the credentials: {wrong}. Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "(AWS_SESSION_TOKEN), or choose another profile with storage.profile"
            )
        return _denied(failed, f"bucket '{bucket}'")
    return StorageError(f"{failed}: {where} answered {_first_line(cause)}", transient=True)


def _reason_of_denial(config: StorageConfig, bucket: str) -> str:
    """The error code with which a request is denied. An answer to HeadBucket has no body, and so no code."""
    try:
        client(replace(config, max_attempts=1)).list_objects_v2(Bucket=bucket, MaxKeys=1)
    except S3_ERRORS as error:
        return _code(error)
    return ""


def _denied(failed: str, what: str) -> StorageError:
    return StorageError(
        f"{failed}: permission denied for {what}. The credentials in use need s3:ListBucket, "
        "s3:GetObject and, for outputs, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and "
        "s3:ListBucketMultipartUploads; check storage.profile and the bucket's policy"
    )


def _code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
