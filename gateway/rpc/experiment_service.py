"""ExperimentService: checks the request, asks the store, shows the experiment."""

from collections.abc import Iterable
from typing import Any, Final

from headrace.v1 import experiment_service_pb2 as pb
from headrace.v1 import experiment_service_pb2_grpc as pb_grpc
from headrace.v1 import run_service_pb2

from gateway.domain import metadata
from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.experiments import TAGS_MAX, Experiment
from gateway.domain.filters.parsing import parse_filter, parse_order
from gateway.domain.identity import current_identity
from gateway.domain.metadata import TEXT_CHARACTERS_MAX
from gateway.domain.searches import ExperimentSearch, Visibility
from gateway.rpc import fields, page_tokens
from gateway.rpc.metadata import tag_messages, timestamp
from gateway.store.experiments import ExperimentStore
from gateway.store.search import EXPERIMENT_ATTRIBUTES, SearchStore

_PAGE_SIZE: Final = 100
_PAGE_SIZE_MAX: Final = 1_000


class ExperimentService(pb_grpc.ExperimentServiceServicer):
    """See headrace.v1.ExperimentService; errors leave as HeadraceError."""

    def __init__(self, experiments: ExperimentStore, searches: SearchStore) -> None:
        self._experiments = experiments
        self._searches = searches

    async def CreateExperiment(  # noqa: N802
        self, request: pb.CreateExperimentRequest, context: Any
    ) -> pb.CreateExperimentResponse:
        """Create an experiment, or get it."""
        name = fields.required_name(request.name, field="name")
        fields.text(request.description, field="description", characters_max=TEXT_CHARACTERS_MAX)
        request_id = None
        if request.request_id:
            request_id = fields.hex_id(request.request_id, field="request_id")
        experiment, created = await self._experiments.create(
            current_identity().workspace_id,
            name,
            description=request.description,
            tags=_tags(request.tags),
            request_id=request_id,
            get_if_exists=request.get_if_exists,
        )
        return pb.CreateExperimentResponse(
            experiment=_experiment_message(experiment), created=created
        )

    async def GetExperiment(  # noqa: N802
        self, request: pb.GetExperimentRequest, context: Any
    ) -> pb.GetExperimentResponse:
        """Read an experiment by its id or name."""
        workspace_id = current_identity().workspace_id
        match request.WhichOneof("experiment"):
            case "experiment_id":
                experiment = await self._experiments.read(workspace_id, request.experiment_id)
            case "name":
                name = fields.required_name(request.name, field="name")
                experiment = await self._experiments.read_by_name(workspace_id, name)
            case _:
                raise HeadraceError(
                    Reason.FIELD_REQUIRED,
                    "experiment_id or name is required",
                    field="experiment_id",
                )
        return pb.GetExperimentResponse(experiment=_experiment_message(experiment))

    async def SearchExperiments(  # noqa: N802
        self, request: pb.SearchExperimentsRequest, context: Any
    ) -> pb.SearchExperimentsResponse:
        """Return a page of the experiments that a filter finds."""
        limit = fields.page_size(request.page_size, default=_PAGE_SIZE, maximum=_PAGE_SIZE_MAX)
        identity = fields.page_identity(request)
        experiments, after = await self._searches.experiments(
            ExperimentSearch(
                workspace_id=current_identity().workspace_id,
                expression=parse_filter(request.filter, attributes=EXPERIMENT_ATTRIBUTES),
                order=parse_order(request.order_by, attributes=EXPERIMENT_ATTRIBUTES),
                visibility=Visibility(
                    fields.choice(
                        request.visibility, field="visibility", default=1, allowed=range(1, 4)
                    )
                ),
                limit=limit,
                after=page_tokens.accept(request.page_token, identity),
            )
        )
        return pb.SearchExperimentsResponse(
            experiments=map(_experiment_message, experiments),
            next_page_token=page_tokens.issue(after, identity),
        )

    async def UpdateExperiment(  # noqa: N802
        self, request: pb.UpdateExperimentRequest, context: Any
    ) -> pb.UpdateExperimentResponse:
        """Change the fields that the mask names."""
        paths = fields.mask(request.update_mask, allowed=("name", "description"))
        name = description = None
        if "name" in paths:
            name = fields.required_name(request.experiment.name, field="experiment.name")
        if "description" in paths:
            description = fields.text(
                request.experiment.description,
                field="experiment.description",
                characters_max=TEXT_CHARACTERS_MAX,
            )
        experiment = await self._experiments.update(
            current_identity().workspace_id,
            request.experiment_id,
            name=name,
            description=description,
        )
        return pb.UpdateExperimentResponse(experiment=_experiment_message(experiment))

    async def WriteExperimentTags(  # noqa: N802
        self, request: pb.WriteExperimentTagsRequest, context: Any
    ) -> pb.WriteExperimentTagsResponse:
        """Set and delete tags."""
        fields.count(len(request.deleted_keys), field="deleted_keys", maximum=TAGS_MAX)
        for key in request.deleted_keys:
            _check_tag(key, "")
        experiment = await self._experiments.write_tags(
            current_identity().workspace_id,
            request.experiment_id,
            tags=_tags(request.tags),
            deleted_keys=request.deleted_keys,
        )
        return pb.WriteExperimentTagsResponse(experiment=_experiment_message(experiment))

    async def DeleteExperiment(  # noqa: N802
        self, request: pb.DeleteExperimentRequest, context: Any
    ) -> pb.DeleteExperimentResponse:
        """Hide an experiment."""
        experiment = await self._experiments.delete(
            current_identity().workspace_id, request.experiment_id
        )
        return pb.DeleteExperimentResponse(experiment=_experiment_message(experiment))

    async def RestoreExperiment(  # noqa: N802
        self, request: pb.RestoreExperimentRequest, context: Any
    ) -> pb.RestoreExperimentResponse:
        """Take a deletion back."""
        experiment = await self._experiments.restore(
            current_identity().workspace_id, request.experiment_id
        )
        return pb.RestoreExperimentResponse(experiment=_experiment_message(experiment))


def _tags(messages: Iterable[run_service_pb2.Tag]) -> dict[str, str]:
    tags = {}
    for message in messages:
        _check_tag(message.key, message.value)
        tags[message.key] = message.value
    fields.count(len(tags), field="tags", maximum=TAGS_MAX)
    return tags


def _check_tag(key: str, value: str) -> None:
    refusal = metadata.fault(metadata.Tag(key=key, value=value))
    if refusal is not None:
        raise refusal.error()


def _experiment_message(experiment: Experiment) -> pb.Experiment:
    return pb.Experiment(
        experiment_id=experiment.experiment_id,
        name=experiment.name,
        description=experiment.description,
        tags=tag_messages(experiment.tags),
        create_time=timestamp(experiment.created_at),
        update_time=timestamp(experiment.updated_at),
        delete_time=timestamp(experiment.deleted_at),
    )
