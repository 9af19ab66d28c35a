"""What the client raises: at `init` for a wrong set-up, elsewhere only when strict."""


class HeadraceError(Exception):
    """Any failure of this package."""


class ConfigurationError(HeadraceError, ValueError):
    """A setting, an argument of `init` or the job's environment cannot be used."""


class InvalidMetricError(HeadraceError, ValueError):
    """A key, step or value that no gateway would accept (raised only when strict)."""


class SpoolError(HeadraceError, OSError):
    """The spool cannot be created, written or read (raised only when strict)."""
