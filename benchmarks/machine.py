"""What a result was measured on: machine, versions, commit, database settings."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import asyncpg
import psutil

PACKAGES: Final = ("headrace-gateway", "grpcio", "protobuf", "asyncpg", "numpy", "uvloop")

SETTINGS: Final = (
    "server_version",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "shared_buffers",
    "max_wal_size",
    "wal_compression",
    "wal_level",
    "checkpoint_timeout",
)
"""PostgreSQL settings that a reader needs in order to believe a write rate."""

DURABLE: Final = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}


def machine() -> dict[str, object]:
    """Describe the machine, without naming it."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "load_average_before": psutil.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of what the gateway runs on, and the commit."""
    found = {"python": platform.python_version(), "commit": _commit()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


async def database_settings(dsn: str) -> dict[str, str]:
    """Return PostgreSQL's settings.

    Raises:
        RuntimeError: an acknowledgement would not mean durable; nothing
            measured on such a server is worth a word.
    """
    connection = await asyncpg.connect(dsn)
    try:
        settings = {
            name: str(await connection.fetchval("SELECT current_setting($1)", name))
            for name in SETTINGS
        }
    finally:
        await connection.close()
    weak = {name: settings[name] for name, wanted in DURABLE.items() if settings[name] != wanted}
    if weak:
        raise RuntimeError(f"PostgreSQL is not durable: {weak}")
    return settings


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
