"""S3's answers as domain errors: they name the bucket, the permission and the remedy.

The one translation of driver errors in `blobs`. Two answers are not failures
of the store but facts its callers act on; they have classes of their own.
"""

import asyncio
from typing import Any, Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from gateway.domain.errors import HeadraceError, Reason

_RETRY_AFTER_MS: Final = 1_000

PERMISSIONS: Final = {
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListParts": "s3:ListMultipartUploadParts",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}
"""The IAM permission that each operation needs."""

_DENIED: Final = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403"}
_BAD_CREDENTIALS: Final = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "AuthorizationHeaderMalformed",
}
_DAMAGED: Final = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "IncompleteBody"}
_MISSING: Final = {"NoSuchKey", "NotFound", "404"}


class BlobMissingError(HeadraceError):
    """The object does not exist."""


class UploadForgottenError(HeadraceError):
    """S3 does not know the multipart upload: completed, aborted, or lost by the server."""


def translate(error: BaseException, *, operation: str, bucket: str) -> HeadraceError:
    """Return the domain error for whatever an S3 call raised; the caller chains it.

    Args:
        error: from aiobotocore, aiohttp or asyncio.
        operation: S3's name of the operation, for example `UploadPart`.
        bucket: its bucket.
    """
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, ClientError):
        return _answer(error.response, operation, bucket)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return _denied(
            "the gateway has no S3 credentials: set s3_access_key_id and s3_secret_access_key,"
            " or provide them by the standard AWS chain (environment, profile, instance role)",
            operation,
            bucket,
        )
    from aiohttp import ClientError as HttpError  # noqa: PLC0415 - only S3 calls need aiohttp

    if isinstance(error, BotoCoreError | HttpError | TimeoutError | OSError | asyncio.TimeoutError):
        return _unavailable(f"{type(error).__name__}", operation, bucket)
    return HeadraceError(
        Reason.INTERNAL, f"{operation} in bucket {bucket!r} failed: {type(error).__name__}"
    )


def _answer(response: Any, operation: str, bucket: str) -> HeadraceError:  # noqa: PLR0911 - a table
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    permission = PERMISSIONS.get(operation, operation)
    # rclone streams the parts of an upload to disk in their order. A part of which
    # it has written other bytes (the end of a damaged one, say) it refuses so, for good.
    spoilt = code == "NotImplemented" and operation == "UploadPart"
    if code == "NoSuchUpload" or spoilt:
        return UploadForgottenError(
            Reason.UPLOAD_NOT_FOUND, "the S3 server does not know the upload: call BeginUpload"
        )
    if code == "NoSuchBucket":
        return _denied(
            f"S3 bucket {bucket!r} does not exist: create it, or set s3_bucket", operation, bucket
        )
    if code in _MISSING:
        return BlobMissingError(Reason.INTERNAL, f"bucket {bucket!r} has lost an object")
    if code in _DENIED:
        return _denied(
            f"S3 refuses {operation} in bucket {bucket!r}: grant {permission} to the gateway's"
            " credentials, then run `headrace-gateway doctor`",
            operation,
            bucket,
        )
    if code in _BAD_CREDENTIALS:
        return _denied(
            f"S3 refuses the gateway's credentials ({code}) for bucket {bucket!r}: check"
            " s3_access_key_id, s3_secret_access_key and s3_region",
            operation,
            bucket,
        )
    if code == "RequestTimeTooSkewed":
        return _denied(
            "the gateway's clock differs from S3's by more than 15 minutes: set it right",
            operation,
            bucket,
        )
    if code in _DAMAGED:
        return HeadraceError(
            Reason.DIGEST_MISMATCH,
            f"S3 received other bytes than were announced ({code}): send them again",
        )
    if code == "InvalidPart" and operation == "CompleteMultipartUpload":
        # Another client of the same upload is sending a part again at this moment.
        return _unavailable(code, operation, bucket)
    if status >= 500 or status in (408, 429) or code in {"SlowDown", "RequestTimeout"}:
        return _unavailable(f"{code or status}", operation, bucket)
    if status == 403:
        return _denied(
            f"S3 refuses {operation} in bucket {bucket!r} ({code}): grant {permission}",
            operation,
            bucket,
        )
    return HeadraceError(
        Reason.INTERNAL, f"S3 refused {operation} in bucket {bucket!r}: {code or status}"
    )


def _denied(message: str, operation: str, bucket: str) -> HeadraceError:
    return HeadraceError(
        Reason.BLOB_STORE_DENIED,
        message,
        bucket=bucket,
        operation=operation,
        permission=PERMISSIONS.get(operation, operation),
    )


def _unavailable(detail: str, operation: str, bucket: str) -> HeadraceError:
    return HeadraceError(
        Reason.BLOB_STORE_UNAVAILABLE,
        f"S3 bucket {bucket!r} cannot serve {operation} now ({detail}): the call may be repeated",
        retry_after_ms=_RETRY_AFTER_MS,
        bucket=bucket,
        operation=operation,
    )
