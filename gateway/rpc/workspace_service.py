"""WorkspaceService: checks the request, asks the store, shows the workspace."""

from typing import Any, Final

from headrace.v1 import experiment_service_pb2 as pb
from headrace.v1 import experiment_service_pb2_grpc as pb_grpc

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.experiments import WORKSPACE_NAME, WORKSPACE_NAME_RULE, Workspace
from gateway.domain.identity import current_identity
from gateway.domain.searches import Cursor, Phase
from gateway.rpc import fields, page_tokens
from gateway.rpc.metadata import timestamp
from gateway.store.workspaces import WorkspaceStore

_PAGE_SIZE: Final = 100
_PAGE_SIZE_MAX: Final = 1_000


class WorkspaceService(pb_grpc.WorkspaceServiceServicer):
    """See headrace.v1.WorkspaceService; errors leave as HeadraceError."""

    def __init__(self, workspaces: WorkspaceStore) -> None:
        self._workspaces = workspaces

    async def CreateWorkspace(  # noqa: N802
        self, request: pb.CreateWorkspaceRequest, context: Any
    ) -> pb.CreateWorkspaceResponse:
        """Create a workspace."""
        name = fields.required_name(request.name, field="name")
        if not WORKSPACE_NAME.fullmatch(name):
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"a workspace's name is {WORKSPACE_NAME_RULE}",
                field="name",
                value=name,
            )
        request_id = None
        if request.request_id:
            request_id = fields.hex_id(request.request_id, field="request_id")
        workspace = await self._workspaces.create(name, request_id=request_id)
        return pb.CreateWorkspaceResponse(workspace=_workspace_message(workspace))

    async def ListWorkspaces(  # noqa: N802
        self, request: pb.ListWorkspacesRequest, context: Any
    ) -> pb.ListWorkspacesResponse:
        """Return a page of the workspaces that the caller may name."""
        limit = fields.page_size(request.page_size, default=_PAGE_SIZE, maximum=_PAGE_SIZE_MAX)
        identity = fields.page_identity(request)
        cursor = page_tokens.accept(request.page_token, identity)
        caller = current_identity()
        page = await self._workspaces.page(
            after="" if cursor is None else str(cursor.values[0]),
            limit=limit + 1,
            include_archived=request.include_archived,
            only=None if caller.can_administer else caller.workspace_id,
        )
        after = None
        if len(page) > limit:
            page.pop()
            after = Cursor(phase=Phase.WHOLE, values=(page[-1].name,))
        return pb.ListWorkspacesResponse(
            workspaces=map(_workspace_message, page),
            next_page_token=page_tokens.issue(after, identity),
        )

    async def ArchiveWorkspace(  # noqa: N802
        self, request: pb.ArchiveWorkspaceRequest, context: Any
    ) -> pb.ArchiveWorkspaceResponse:
        """Archive a workspace."""
        workspace = await self._workspaces.archive(fields.required_name(request.name, field="name"))
        return pb.ArchiveWorkspaceResponse(workspace=_workspace_message(workspace))


def _workspace_message(workspace: Workspace) -> pb.Workspace:
    return pb.Workspace(
        name=workspace.name,
        create_time=timestamp(workspace.created_at),
        archive_time=timestamp(workspace.archived_at),
    )
