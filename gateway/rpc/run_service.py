"""RunService: checks the request, asks the store, shows the run."""

from typing import Any, Final

from headrace.v1 import run_service_pb2 as pb
from headrace.v1 import run_service_pb2_grpc as pb_grpc

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.experiments import DEFAULT_EXPERIMENT
from gateway.domain.filters.parsing import parse_filter, parse_order
from gateway.domain.identity import current_identity
from gateway.domain.limits import NAME_CHARACTERS_MAX
from gateway.domain.metadata import PARAM_CHARACTERS_MAX, TEXT_CHARACTERS_MAX
from gateway.domain.runs import END_STATES, NewRun, RunOrigin, RunState, readable_name
from gateway.domain.searches import RunSearch, Visibility
from gateway.rpc import fields, page_tokens
from gateway.rpc.metadata import changed_run_message, entries, run_message, time_of
from gateway.store.runs import RunStore
from gateway.store.search import RUN_ATTRIBUTES, SearchStore

_EXPERIMENTS_MAX: Final = 1_000
_PAGE_SIZE: Final = 100
_PAGE_SIZE_MAX: Final = 1_000


class RunService(pb_grpc.RunServiceServicer):
    """See headrace.v1.RunService; errors leave as HeadraceError."""

    def __init__(self, runs: RunStore, searches: SearchStore) -> None:
        self._runs = runs
        self._searches = searches

    async def CreateRun(  # noqa: N802
        self, request: pb.CreateRunRequest, context: Any
    ) -> pb.CreateRunResponse:
        """Create a run, or return the one that has the id."""
        run_id = fields.run_id(request.run_id)
        parent = None
        if request.parent_run_id:
            parent = fields.run_id(request.parent_run_id, field="parent_run_id")
        started_at = None
        if request.HasField("start_time"):
            started_at = time_of(request.start_time, field="start_time")
        run, created = await self._runs.create(
            NewRun(
                run_id=run_id,
                workspace_id=current_identity().workspace_id,
                experiment=fields.name(
                    request.experiment, field="experiment", default=DEFAULT_EXPERIMENT
                ),
                name=fields.name(request.name, field="name", default=readable_name(run_id)),
                step_policy=fields.choice(
                    request.step_policy, field="step_policy", default=1, allowed=range(1, 4)
                ),
                late_policy=fields.choice(
                    request.late_policy, field="late_policy", default=1, allowed=range(1, 3)
                ),
                parent_run_id=parent,
                started_at=started_at,
                origin=RunOrigin(
                    user_name=fields.name(request.user_name, field="user_name", default=""),
                    host=fields.name(request.host, field="host", default=""),
                    git_commit=fields.name(request.git_commit, field="git_commit", default=""),
                    entry_point=fields.name(
                        request.entry_point,
                        field="entry_point",
                        default="",
                        characters_max=PARAM_CHARACTERS_MAX,
                    ),
                ),
                entries=entries(request.entries, field="entries"),
            )
        )
        return pb.CreateRunResponse(run=changed_run_message(run), created=created)

    async def GetRun(  # noqa: N802
        self, request: pb.GetRunRequest, context: Any
    ) -> pb.GetRunResponse:
        """Read a run."""
        run = await self._runs.read(
            fields.run_id(request.run_id), workspace_id=current_identity().workspace_id
        )
        return pb.GetRunResponse(run=run_message(run))

    async def FinishRun(  # noqa: N802
        self, request: pb.FinishRunRequest, context: Any
    ) -> pb.FinishRunResponse:
        """End a run if the attempt is its newest."""
        run_id = fields.run_id(request.run_id)
        if request.attempt < 0:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                "attempt must not be negative",
                field="attempt",
                value=request.attempt,
            )
        state: int = request.state or RunState.FINISHED
        if state not in END_STATES:
            raise HeadraceError(
                Reason.ATTEMPT_NOT_FOUND,
                f"state {state} is no end state: use FINISHED, FAILED or KILLED",
                field="state",
                value=state,
            )
        ended_at = None
        if request.HasField("end_time"):
            ended_at = time_of(request.end_time, field="end_time")
        run, applied = await self._runs.finish(
            run_id,
            workspace_id=current_identity().workspace_id,
            attempt=request.attempt or 1,
            state=RunState(state),
            ended_at=ended_at,
        )
        return pb.FinishRunResponse(run=changed_run_message(run), applied=applied)

    async def HeartbeatRun(  # noqa: N802
        self, request: pb.HeartbeatRunRequest, context: Any
    ) -> pb.HeartbeatRunResponse:
        """Note that a run's job is alive."""
        await self._runs.heartbeat(
            fields.run_id(request.run_id), workspace_id=current_identity().workspace_id
        )
        return pb.HeartbeatRunResponse()

    async def ReopenRun(  # noqa: N802
        self, request: pb.ReopenRunRequest, context: Any
    ) -> pb.ReopenRunResponse:
        """Set a run that has ended to RUNNING."""
        run = await self._runs.reopen(
            fields.run_id(request.run_id), workspace_id=current_identity().workspace_id
        )
        return pb.ReopenRunResponse(run=changed_run_message(run))

    async def UpdateRun(  # noqa: N802
        self, request: pb.UpdateRunRequest, context: Any
    ) -> pb.UpdateRunResponse:
        """Change the fields that the mask names."""
        run_id = fields.run_id(request.run_id)
        limits = {
            "name": NAME_CHARACTERS_MAX,
            "user_name": NAME_CHARACTERS_MAX,
            "host": NAME_CHARACTERS_MAX,
            "git_commit": NAME_CHARACTERS_MAX,
            "entry_point": PARAM_CHARACTERS_MAX,
            "notes": TEXT_CHARACTERS_MAX,
        }
        changes: dict[str, str] = {}
        for path in fields.mask(request.update_mask, allowed=limits):
            value: str = getattr(request.run, path)
            if path == "notes":
                fields.text(value, field="run.notes", characters_max=limits[path])
            elif path == "name" and not value:
                value = readable_name(run_id)
            else:
                fields.name(value, field=f"run.{path}", default="", characters_max=limits[path])
            changes[path] = value
        run = await self._runs.update(
            run_id, workspace_id=current_identity().workspace_id, changes=changes
        )
        return pb.UpdateRunResponse(run=changed_run_message(run))

    async def WriteMetadata(  # noqa: N802
        self, request: pb.WriteMetadataRequest, context: Any
    ) -> pb.WriteMetadataResponse:
        """Write entries, all or none."""
        await self._runs.write_metadata(
            fields.run_id(request.run_id),
            entries(request.entries, field="entries"),
            workspace_id=current_identity().workspace_id,
        )
        return pb.WriteMetadataResponse()

    async def SearchRuns(  # noqa: N802
        self, request: pb.SearchRunsRequest, context: Any
    ) -> pb.SearchRunsResponse:
        """Return a page of the runs that a filter finds."""
        for field in ("experiment_ids", "experiments"):
            fields.count(len(getattr(request, field)), field=field, maximum=_EXPERIMENTS_MAX)
        for name in request.experiments:
            fields.required_name(name, field="experiments")
        limit = fields.page_size(request.page_size, default=_PAGE_SIZE, maximum=_PAGE_SIZE_MAX)
        identity = fields.page_identity(request)
        runs, after = await self._searches.runs(
            RunSearch(
                workspace_id=current_identity().workspace_id,
                experiment_ids=tuple(request.experiment_ids),
                experiments=tuple(request.experiments),
                expression=parse_filter(request.filter, attributes=RUN_ATTRIBUTES),
                order=parse_order(request.order_by, attributes=RUN_ATTRIBUTES),
                visibility=Visibility(
                    fields.choice(
                        request.visibility, field="visibility", default=1, allowed=range(1, 4)
                    )
                ),
                limit=limit,
                after=page_tokens.accept(request.page_token, identity),
                include_data=request.include_data,
            )
        )
        return pb.SearchRunsResponse(
            runs=map(run_message, runs), next_page_token=page_tokens.issue(after, identity)
        )

    async def DeleteRun(  # noqa: N802
        self, request: pb.DeleteRunRequest, context: Any
    ) -> pb.DeleteRunResponse:
        """Hide a run."""
        run = await self._runs.delete(
            fields.run_id(request.run_id), workspace_id=current_identity().workspace_id
        )
        return pb.DeleteRunResponse(run=changed_run_message(run))

    async def RestoreRun(  # noqa: N802
        self, request: pb.RestoreRunRequest, context: Any
    ) -> pb.RestoreRunResponse:
        """Take a deletion back."""
        run = await self._runs.restore(
            fields.run_id(request.run_id), workspace_id=current_identity().workspace_id
        )
        return pb.RestoreRunResponse(run=changed_run_message(run))
