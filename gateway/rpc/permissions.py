"""What each method requires. A method that is not here is refused: default-deny.

Whoever adds a method adds its line; a test compares this table with what the
server registers.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Permission(Enum):
    """What a caller must be able to do."""

    PUBLIC = "public"
    """Nothing; no token is looked at. For probes."""
    READ = "read"
    """Have a valid token."""
    WRITE = "write"
    """Have a valid token that may write."""


METHOD_PERMISSIONS: Final[Mapping[str, Permission]] = {
    "/grpc.health.v1.Health/Check": Permission.PUBLIC,
    "/grpc.health.v1.Health/List": Permission.PUBLIC,
    "/grpc.health.v1.Health/Watch": Permission.PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Permission.READ,
    "/headrace.v1.MetricService/ImportMetrics": Permission.WRITE,
    "/headrace.v1.MetricService/ListSeries": Permission.READ,
    "/headrace.v1.MetricService/ReadMetrics": Permission.READ,
    "/headrace.v1.MetricService/WriteMetrics": Permission.WRITE,
    "/headrace.v1.RunService/CreateRun": Permission.WRITE,
    "/headrace.v1.RunService/FinishRun": Permission.WRITE,
    "/headrace.v1.RunService/GetRun": Permission.READ,
    "/headrace.v1.RunService/HeartbeatRun": Permission.WRITE,
}
