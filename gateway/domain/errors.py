"""The errors that calls fail with.

`store` and `blobs` translate driver errors into these; one interceptor in
`rpc` translates these into gRPC statuses with an ErrorInfo. Nothing else
translates errors, and no driver error reaches a client.
"""

from enum import IntEnum


# The values of headrace.v1.ErrorReason, by name; a test holds the two equal.
class Reason(IntEnum):
    """Why a call failed or a point was rejected; see error_reason.proto."""

    MALFORMED_MESSAGE = 1
    FIELD_REQUIRED = 2
    FIELD_INVALID = 3
    LIMIT_EXCEEDED = 4
    RUN_NOT_FOUND = 5
    RUN_PURGED = 6
    RUN_EXISTS = 7
    OPEN_EXPECTED = 8
    WRITER_CLAIMED = 9
    WRITER_FENCED = 10
    WRITER_FINISHED = 11
    WRITER_MISMATCH = 12
    RESUME_STEP_MISMATCH = 13
    SEQUENCE_GAP = 14
    COLUMN_LENGTH_MISMATCH = 15
    UNKNOWN_KEY_INDEX = 16
    KEY_INVALID = 17
    KEYS_EXHAUSTED = 18
    STEP_OUT_OF_RANGE = 19
    TIME_OUT_OF_RANGE = 20
    STEP_LATE = 21
    STORE_REFUSED = 22
    OVERLOADED = 23
    STORE_UNAVAILABLE = 24
    DRAINING = 25
    UNAUTHENTICATED = 26
    PERMISSION_DENIED = 27
    INTERNAL = 28
    PAGE_TOKEN_INVALID = 29
    ATTEMPT_NOT_FOUND = 30
    METHOD_UNKNOWN = 31
    ARTIFACT_PATH_INVALID = 32
    ARTIFACT_PATH_CONFLICT = 33
    ARTIFACT_NOT_FOUND = 34
    ARTIFACT_CHANGED = 35
    UPLOAD_NOT_FOUND = 36
    UPLOAD_INCOMPLETE = 37
    DIGEST_MISMATCH = 38
    TRANSFER_STALLED = 39
    DIRECT_UNAVAILABLE = 40
    BLOB_STORE_UNAVAILABLE = 41
    BLOB_STORE_DENIED = 42
    ARTIFACTS_DISABLED = 43
    PARAM_CHANGED = 44
    FILTER_INVALID = 45
    EXPERIMENT_NOT_FOUND = 46
    EXPERIMENT_EXISTS = 47
    EXPERIMENT_DELETED = 48
    WORKSPACE_NOT_FOUND = 49
    WORKSPACE_EXISTS = 50
    WORKSPACE_ARCHIVED = 51
    RUN_PROTECTED = 52
    FOLLOWER_LAGGED = 53


class HeadraceError(Exception):
    """A failure that a caller is told about.

    Attributes:
        reason: the machine-readable reason.
        message: for people; names the resource and the remedy.
        metadata: `field`, `value`, `limit` and the like, all text.
        retry_after_ms: when set, the status carries RetryInfo.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        limit: object = None,
        retry_after_ms: int | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_ms = retry_after_ms
        named = {"field": field, "value": value, "limit": limit, **metadata}
        # gRPC metadata is bounded (8 kB in all): a value is quoted, not carried.
        self.metadata = {name: str(item)[:200] for name, item in named.items() if item is not None}


class StoreUnavailableError(HeadraceError):
    """The database cannot be reached or asked to wait; the call may be repeated."""

    def __init__(self, message: str, *, retry_after_ms: int = 500) -> None:
        super().__init__(Reason.STORE_UNAVAILABLE, message, retry_after_ms=retry_after_ms)
