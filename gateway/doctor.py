"""The doctor: what fails first in production, and what to change.

`headrace-gateway doctor` prints it, `serve` logs it when it starts. It asks the
stores with the gateway's own credentials and changes nothing, except for one
object that it puts into the bucket and takes out again.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import structlog
from rich.table import Table
from rich.text import Text

from gateway.artifacts.wiring import bucket_settings
from gateway.blobs import diagnosis as blobs
from gateway.config import Settings
from gateway.domain.findings import Finding, Health, good
from gateway.store import diagnosis as store
from gateway.store.connections import Database

_LOG = structlog.get_logger(__name__)
_MARKS: Final = {Health.GOOD: "[green]good", Health.WARN: "[yellow]warn", Health.BAD: "[red]bad"}


async def diagnose(settings: Settings, database: Database | None = None) -> list[Finding]:
    """Check the database and the bucket, at the same time.

    Args:
        settings: of the whole gateway.
        database: a running gateway's own connections; a further one would break
            its budget. None opens one for the check.
    """
    budget = settings.ingest_connections + settings.query_connections
    async with asyncio.TaskGroup() as tasks:
        stored = tasks.create_task(
            store.diagnose(settings.dsn, connections_budget=budget)
            if database is None
            else store.diagnose_connected(database, connections_budget=budget)
        )
        bucket = tasks.create_task(_bucket(settings))
    return [*stored.result(), *bucket.result()]


async def _bucket(settings: Settings) -> list[Finding]:
    if not settings.s3_bucket:
        return [good("S3", "no bucket is set: artifacts are off")]
    return await blobs.diagnose(bucket_settings(settings))


async def log_findings(settings: Settings, database: Database) -> None:
    """Log what is not good, and one line in any case."""
    findings = await diagnose(settings, database)
    for finding in findings:
        if finding.health is not Health.GOOD:
            tell = _LOG.error if finding.health is Health.BAD else _LOG.warning
            tell("doctor", check=finding.check, found=finding.found, remedy=finding.remedy)
    good_count = sum(finding.health is Health.GOOD for finding in findings)
    _LOG.info("doctor is done", checks=len(findings), good=good_count)


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing is bad."""
    return all(finding.health is not Health.BAD for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings for programs."""
    return json.dumps(
        {"healthy": healthy(findings), "findings": [asdict(finding) for finding in findings]}
    )


def as_table(findings: Sequence[Finding]) -> Table:
    """Return the findings for people."""
    table = Table("", "check", "found", "what to change")
    for finding in findings:
        texts = map(Text, (finding.check, finding.found, finding.remedy))
        table.add_row(_MARKS[finding.health], *texts)
    return table
