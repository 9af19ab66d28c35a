"""RunService: checks the request, asks the store, shows the run."""

from datetime import datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from headrace.v1 import run_service_pb2 as pb
from headrace.v1 import run_service_pb2_grpc as pb_grpc

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.identity import current_identity
from gateway.domain.runs import END_STATES, Run, RunState
from gateway.rpc import fields
from gateway.store.runs import RunStore

_DEFAULT_EXPERIMENT: Final = "Default"


class RunService(pb_grpc.RunServiceServicer):
    """See headrace.v1.RunService; errors leave as HeadraceError."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs

    async def CreateRun(  # noqa: N802
        self, request: pb.CreateRunRequest, context: Any
    ) -> pb.CreateRunResponse:
        """Create a run, or return the one that has the id."""
        run_id = fields.run_id(request.run_id)
        run, created = await self._runs.create(
            run_id,
            workspace_id=current_identity().workspace_id,
            experiment=fields.name(
                request.experiment, field="experiment", default=_DEFAULT_EXPERIMENT
            ),
            name=fields.name(request.name, field="name", default=run_id.hex[:8]),
            step_policy=fields.choice(
                request.step_policy, field="step_policy", default=1, allowed=range(1, 4)
            ),
            late_policy=fields.choice(
                request.late_policy, field="late_policy", default=1, allowed=range(1, 3)
            ),
        )
        return pb.CreateRunResponse(run=run_message(run), created=created)

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
        run, applied = await self._runs.finish(
            run_id,
            workspace_id=current_identity().workspace_id,
            attempt=request.attempt or 1,
            state=RunState(state),
        )
        return pb.FinishRunResponse(run=run_message(run), applied=applied)

    async def HeartbeatRun(  # noqa: N802
        self, request: pb.HeartbeatRunRequest, context: Any
    ) -> pb.HeartbeatRunResponse:
        """Note that a run's job is alive."""
        await self._runs.heartbeat(
            fields.run_id(request.run_id), workspace_id=current_identity().workspace_id
        )
        return pb.HeartbeatRunResponse()


def run_message(run: Run) -> pb.Run:
    """Return a run as the contract shows it."""
    return pb.Run(
        run_id=run.run_id.hex,
        experiment=run.experiment,
        name=run.name,
        state=pb.RunState.ValueType(run.state),
        step_policy=pb.StepPolicy.ValueType(run.step_policy),
        late_policy=pb.LatePolicy.ValueType(run.late_policy),
        create_time=_timestamp(run.created_at),
        end_time=_timestamp(run.ended_at),
        heartbeat_time=_timestamp(run.heartbeat_at),
        attempts=[
            pb.Attempt(
                attempt=attempt.attempt,
                resume_step=attempt.resume_step,
                start_time=_timestamp(attempt.started_at),
            )
            for attempt in run.attempts
        ],
    )


def _timestamp(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
