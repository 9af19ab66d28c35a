"""What the client raises: at `init` for a wrong set-up, elsewhere only when strict."""


class HeadraceError(Exception):
    """Any failure of this package."""


class ConfigurationError(HeadraceError, ValueError):
    """A setting, an argument of `init` or the job's environment cannot be used."""


class InvalidMetricError(HeadraceError, ValueError):
    """A key, step or value that no gateway would accept (raised only when strict)."""


class InvalidMetadataError(HeadraceError, ValueError):
    """A param, tag, note, summary value or dataset that no gateway would accept, or a param
    that has another value already (raised only when strict)."""


class SpoolError(HeadraceError, OSError):
    """The spool cannot be created, written or read (raised only when strict)."""


class GatewayError(HeadraceError):
    """A call to the gateway failed.

    Attributes:
        reason: the name of an ErrorReason, for example `RUN_NOT_FOUND`; the name of
            a gRPC status, for example `UNAVAILABLE`, when no gateway answered.
        metadata: what the error names: `field`, `value`, `limit`, ….
        retry: whether the same call may succeed later.
        retry_after_s: the least wait the gateway asks for.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: dict[str, str] | None = None,
        retry: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.metadata = metadata or {}
        self.retry = retry
        self.retry_after_s = retry_after_s
