"""Experiments: part of `headrace.Client`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from headrace.connection import Connection
from headrace.identifiers import new_identifier
from headrace.run_info import Visibility, optional_time, time_of, visibility_value
from headrace.v1 import experiment_service_pb2 as pb
from headrace.v1.run_service_pb2 import Tag

_PAGE_SIZE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentInfo:
    """An experiment as the gateway knows it.

    Attributes:
        experiment_id: assigned by the gateway; 0 is `Default`.
        name: unique in its workspace.
        description: free text.
        tags: by key.
        created_at, updated_at: UTC.
        deleted_at: None when it is not.
    """

    experiment_id: int
    name: str
    description: str
    tags: Mapping[str, str]
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None


class ExperimentMethods(Connection):
    """The methods that concern experiments. They take a name or an id."""

    def experiment(self, experiment: str | int) -> ExperimentInfo:
        """Return an experiment, deleted ones included.

        Raises:
            GatewayError: EXPERIMENT_NOT_FOUND, …
        """
        request = (
            pb.GetExperimentRequest(experiment_id=experiment)
            if isinstance(experiment, int)
            else pb.GetExperimentRequest(name=experiment)
        )
        return _info(self._call(self._experiment_service.GetExperiment, request).experiment)

    def search_experiments(
        self,
        filter: str = "",  # noqa: A002 - the contract's name
        *,
        order_by: Sequence[str] = (),
        visibility: Visibility = "active",
    ) -> Iterator[ExperimentInfo]:
        """Yield the experiments that a filter finds, in order, fetched page by page.

        Args:
            filter: for example `name LIKE 'search/%' AND tags.owner = 'ada'`; empty: all.
            order_by: default: by name.
            visibility: `active`, `deleted` or `all`.

        Raises:
            GatewayError: FILTER_INVALID names the column; …
        """
        request = pb.SearchExperimentsRequest(
            filter=filter,
            order_by=[order_by] if isinstance(order_by, str) else order_by,
            visibility=visibility_value(visibility),
            page_size=_PAGE_SIZE,
        )
        while True:
            page = self._call(self._experiment_service.SearchExperiments, request)
            yield from map(_info, page.experiments)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def create_experiment(
        self,
        name: str,
        *,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        exist_ok: bool = False,
    ) -> ExperimentInfo:
        """Create an experiment; with `exist_ok`, return the one that has the name.

        Raises:
            GatewayError: EXPERIMENT_EXISTS, EXPERIMENT_DELETED, FIELD_INVALID, …
        """
        request = pb.CreateExperimentRequest(
            name=name,
            description=description,
            tags=_tags(tags or {}),
            request_id=new_identifier(),
            get_if_exists=exist_ok,
        )
        return _info(self._call(self._experiment_service.CreateExperiment, request).experiment)

    def update_experiment(
        self, experiment: str | int, *, name: str | None = None, description: str | None = None
    ) -> ExperimentInfo:
        """Rename an experiment, or replace its description; return it as stored.

        Raises:
            GatewayError: EXPERIMENT_NOT_FOUND; EXPERIMENT_EXISTS when the name is taken; …
        """
        given = {"name": name, "description": description}
        request = pb.UpdateExperimentRequest(
            experiment_id=self._id(experiment),
            experiment=pb.Experiment(name=name or "", description=description or ""),
            update_mask=FieldMask(paths=[key for key in given if given[key] is not None]),
        )
        return _info(self._call(self._experiment_service.UpdateExperiment, request).experiment)

    def set_experiment_tags(
        self,
        experiment: str | int,
        tags: Mapping[str, str] | None = None,
        *,
        deleted: Sequence[str] = (),
    ) -> ExperimentInfo:
        """Set and delete tags of an experiment; return it as stored.

        Raises:
            GatewayError: EXPERIMENT_NOT_FOUND, LIMIT_EXCEEDED, …
        """
        request = pb.WriteExperimentTagsRequest(
            experiment_id=self._id(experiment), tags=_tags(tags or {}), deleted_keys=deleted
        )
        return _info(self._call(self._experiment_service.WriteExperimentTags, request).experiment)

    def delete_experiment(self, experiment: str | int) -> ExperimentInfo:
        """Hide an experiment and its runs.

        Raises:
            GatewayError: EXPERIMENT_NOT_FOUND; FIELD_INVALID for `Default`.
        """
        request = pb.DeleteExperimentRequest(experiment_id=self._id(experiment))
        return _info(self._call(self._experiment_service.DeleteExperiment, request).experiment)

    def restore_experiment(self, experiment: str | int) -> ExperimentInfo:
        """Take a deletion back; runs deleted by themselves stay so.

        Raises:
            GatewayError: EXPERIMENT_NOT_FOUND, …
        """
        request = pb.RestoreExperimentRequest(experiment_id=self._id(experiment))
        return _info(self._call(self._experiment_service.RestoreExperiment, request).experiment)

    def _id(self, experiment: str | int) -> int:
        if isinstance(experiment, int):
            return experiment
        return self.experiment(experiment).experiment_id


def _tags(tags: Mapping[str, str]) -> list[Tag]:
    return [Tag(key=key, value=value) for key, value in tags.items()]


def _info(experiment: pb.Experiment) -> ExperimentInfo:
    return ExperimentInfo(
        experiment_id=experiment.experiment_id,
        name=experiment.name,
        description=experiment.description,
        tags={tag.key: tag.value for tag in experiment.tags},
        created_at=time_of(experiment.create_time),
        updated_at=time_of(experiment.update_time),
        deleted_at=optional_time(experiment, "delete_time"),
    )
