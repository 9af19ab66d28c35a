"""Headrace's Python client: log from training without ever waiting, read back as columns.

    import headrace

    with headrace.init(experiment="digits") as run:
        for step in range(100):
            run.log({"train/loss": loss, "train/accuracy": accuracy}, step=step)

Importing this package imports neither gRPC nor numpy: a training process needs
neither to log. What needs them (`Client`) is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from headrace.active import finish, init, log
from headrace.errors import (
    ConfigurationError,
    GatewayError,
    HeadraceError,
    InvalidMetadataError,
    InvalidMetricError,
    SpoolError,
)
from headrace.run import Run
from headrace.status import RunStatus

if TYPE_CHECKING:
    from headrace.client import Client

__all__ = [
    "Client",
    "ConfigurationError",
    "GatewayError",
    "HeadraceError",
    "InvalidMetadataError",
    "InvalidMetricError",
    "Run",
    "RunStatus",
    "SpoolError",
    "finish",
    "init",
    "log",
]

__version__: Final = "0.1.0"

_LAZY: Final = {"Client": "headrace.client"}
"""Names whose modules import gRPC or numpy, and where they are."""


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
