"""A database with its connections, and readings of it, without a gateway process."""

from tests.reading.conftest import (  # noqa: F401 - fixtures
    _anonymous,
    connection,
    database,
    reading,
)
