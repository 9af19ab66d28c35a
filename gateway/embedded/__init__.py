"""PostgreSQL and an S3 server for one machine, started from Python wheels.

`EmbeddedPostgres` and `EmbeddedS3` each own one directory and one child
process. They start as any user, root included; keep their data, credentials
and ports across restarts; recover from SIGKILL of the child, of the gateway
or of the machine; and never outlive the process that started them (Linux; on
other systems the next start ends the leftover). `Embedded` is both in one DIR,
guarded by a lock, for `headrace-gateway serve --embedded DIR`:

    DIR/lock              held by the gateway that uses DIR
    DIR/embedded.json     generated credentials and the last ports, mode 0600
    DIR/postgres/         PostgreSQL's data directory; DIR/postgres.log its log
    DIR/s3/<bucket>/      the objects as files; DIR/s3.log the server's log

Everything here blocks; call it before the event loop starts.
"""

from gateway.embedded.directory import Embedded, reach, reach_stores
from gateway.embedded.postgres import DATABASE_NAME, POSTGRES_SETTINGS, EmbeddedPostgres
from gateway.embedded.processes import DirectoryInUseError, EmbeddedError
from gateway.embedded.s3 import BUCKET_NAME, EmbeddedS3

__all__ = [
    "BUCKET_NAME",
    "DATABASE_NAME",
    "POSTGRES_SETTINGS",
    "DirectoryInUseError",
    "Embedded",
    "EmbeddedError",
    "EmbeddedPostgres",
    "EmbeddedS3",
    "reach",
    "reach_stores",
]
