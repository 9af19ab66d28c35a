"""What each method requires. A method that is not here is refused: default-deny.

Whoever adds a method adds its line; a test compares this table with what the
server registers.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.identity import Identity


class Permission(Enum):
    """What a caller must be able to do."""

    PUBLIC = "public"
    """Nothing; no token is looked at. For probes."""
    READ = "read"
    """Have a valid token."""
    WRITE = "write"
    """Have a valid token that may write."""
    ADMINISTER = "administer"
    """Be allowed to change workspaces; no token is, so far."""


METHOD_PERMISSIONS: Final[Mapping[str, Permission]] = {
    "/grpc.health.v1.Health/Check": Permission.PUBLIC,
    "/grpc.health.v1.Health/List": Permission.PUBLIC,
    "/grpc.health.v1.Health/Watch": Permission.PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Permission.READ,
    "/headrace.v1.ArtifactService/AbortUpload": Permission.WRITE,
    "/headrace.v1.ArtifactService/BeginUpload": Permission.WRITE,
    "/headrace.v1.ArtifactService/CompleteUpload": Permission.WRITE,
    "/headrace.v1.ArtifactService/DeleteArtifact": Permission.WRITE,
    "/headrace.v1.ArtifactService/DownloadArtifact": Permission.READ,
    "/headrace.v1.ArtifactService/ListArtifacts": Permission.READ,
    "/headrace.v1.ArtifactService/ListParts": Permission.READ,
    "/headrace.v1.ArtifactService/SignDownload": Permission.READ,
    "/headrace.v1.ArtifactService/SignUploadParts": Permission.WRITE,
    "/headrace.v1.ArtifactService/StatArtifact": Permission.READ,
    "/headrace.v1.ArtifactService/UploadArtifact": Permission.WRITE,
    "/headrace.v1.ArtifactService/UploadPart": Permission.WRITE,
    "/headrace.v1.ExperimentService/CreateExperiment": Permission.WRITE,
    "/headrace.v1.ExperimentService/DeleteExperiment": Permission.WRITE,
    "/headrace.v1.ExperimentService/GetExperiment": Permission.READ,
    "/headrace.v1.ExperimentService/RestoreExperiment": Permission.WRITE,
    "/headrace.v1.ExperimentService/SearchExperiments": Permission.READ,
    "/headrace.v1.ExperimentService/UpdateExperiment": Permission.WRITE,
    "/headrace.v1.ExperimentService/WriteExperimentTags": Permission.WRITE,
    "/headrace.v1.MetricService/ImportMetrics": Permission.WRITE,
    "/headrace.v1.MetricService/ListSeries": Permission.READ,
    "/headrace.v1.MetricService/ReadMetrics": Permission.READ,
    "/headrace.v1.MetricService/WriteMetrics": Permission.WRITE,
    "/headrace.v1.RunService/CreateRun": Permission.WRITE,
    "/headrace.v1.RunService/DeleteRun": Permission.WRITE,
    "/headrace.v1.RunService/FinishRun": Permission.WRITE,
    "/headrace.v1.RunService/GetRun": Permission.READ,
    "/headrace.v1.RunService/HeartbeatRun": Permission.WRITE,
    "/headrace.v1.RunService/ReopenRun": Permission.WRITE,
    "/headrace.v1.RunService/RestoreRun": Permission.WRITE,
    "/headrace.v1.RunService/SearchRuns": Permission.READ,
    "/headrace.v1.RunService/UpdateRun": Permission.WRITE,
    "/headrace.v1.RunService/WriteMetadata": Permission.WRITE,
    "/headrace.v1.WorkspaceService/ArchiveWorkspace": Permission.ADMINISTER,
    "/headrace.v1.WorkspaceService/CreateWorkspace": Permission.ADMINISTER,
    "/headrace.v1.WorkspaceService/ListWorkspaces": Permission.READ,
}


def check_permission(identity: Identity, permission: Permission, method: str) -> None:
    """Refuse what the caller may not do. Finer grants will be decided here too.

    Raises:
        HeadraceError: PERMISSION_DENIED, WORKSPACE_ARCHIVED.
    """
    if permission is Permission.WRITE and not identity.can_write:
        raise HeadraceError(
            Reason.PERMISSION_DENIED,
            f"the token {identity.name!r} only reads; {method} writes",
            method=method,
        )
    if permission is Permission.ADMINISTER and not identity.can_administer:
        raise HeadraceError(
            Reason.PERMISSION_DENIED,
            f"{method} is for administrators, which no token is;"
            " `headrace-gateway token create --workspace NAME` makes a workspace",
            method=method,
        )
    if permission is Permission.WRITE and identity.archived:
        raise HeadraceError(
            Reason.WORKSPACE_ARCHIVED,
            "the workspace is archived and takes no more writes",
            method=method,
        )
