"""Explain failed requests to an object store.

pyarrow reports the same text for many causes (a missing bucket, a missing object and a wrong endpoint look alike). So the
cause is determined by a second, simple request: HeadBucket through boto3, whose errors have types.
"""

from typing import Any

import botocore.exceptions as boto_errors
from boto3.exceptions import Boto3Error

from platform.engine.errors import NotFoundError, StorageError
from platform.engine.storage.s3 import StorageConfig, client

S3_ERRORS = (OSError, boto_errors.BotoCoreError, boto_errors.ClientError, Boto3Error)
UNREACHABLE = (boto_errors.ConnectionError, boto_errors.HTTPClientError, boto_errors.ProxyConnectionError)
NO_CREDENTIALS = (
    boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError, boto_errors.CredentialRetrievalError,
    boto_errors.TokenRetrievalError, boto_errors.SSOError, boto_errors.UnauthorizedSSOTokenError,
)  # fmt: skip


def explain(uri: str, bucket: str, config: StorageConfig, action: str, error: Exception) -> StorageError:
    """A StorageError, to be raised, that explains the cause of a failed request.

    action, uri: the request, e.g. "write" and "s3://bucket/key"; error: its exception.
    """
    where = config.endpoint or "AWS"
    failed = f"cannot {action} {uri}"
    try:
        client(config).head_bucket(Bucket=bucket)
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
        return StorageError(
            f"{failed}: nothing answers at {where} ({type(cause).__name__}). "
            "Check storage.endpoint_url (AWS_ENDPOINT_URL) and the network",
            transient=True,
        )
    except boto_errors.ClientError as cause:
        return _explain_bucket(cause, failed, bucket, where)
    except boto_errors.BotoCoreError as cause:
        return StorageError(f"{failed}: {_first_line(cause)}", transient=True)
    if isinstance(error, FileNotFoundError) or _code(error) in ("404", "NoSuchKey"):
        return NotFoundError(f"{failed}: it does not exist")
    if _code(error) in ("403", "AccessDenied") or "ACCESS_DENIED" in str(error) or "HTTP status 403" in str(error):
        return _denied(failed, "this object")
    return StorageError(f"{failed}: {_first_line(error)}", transient=not _code(error).startswith("4"))


def _explain_bucket(cause: Any, failed: str, bucket: str, where: str) -> StorageError:
    code = _code(cause)
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
        return _denied(failed, f"bucket '{bucket}'")
    return StorageError(f"{failed}: {where} answered {_first_line(cause)}", transient=True)


def _denied(failed: str, what: str) -> StorageError:
    return StorageError(
        f"{failed}: permission denied for {what}. The credentials in use need s3:ListBucket, "
        "s3:GetObject and, for outputs, s3:PutObject and s3:DeleteObject; check storage.profile and "
        "the bucket's policy"
    )


def _code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
