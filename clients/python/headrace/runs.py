"""Finding, comparing and changing runs: part of `headrace.Client`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from headrace.comparison import Comparison, compared
from headrace.connection import Connection
from headrace.identifiers import is_identifier
from headrace.limits import ENTRIES_MAX
from headrace.metadata_entries import param_text
from headrace.record import METADATA_BYTES_MAX
from headrace.run_info import RunInfo, Visibility, run_info, visibility_value
from headrace.v1 import run_service_pb2 as pb

_PAGE_SIZE: Final = 200
_CANDIDATES_MAX: Final = 10
_DIGITS_MIN: Final = 6
_HEX: Final = re.compile("[0-9a-f]+")


class RunMethods(Connection):
    """The methods that concern runs."""

    def run(self, run_id: str) -> RunInfo:
        """Return a run.

        Raises:
            GatewayError: RUN_NOT_FOUND, …
        """
        return run_info(self._run_message(run_id))

    def search_runs(
        self,
        filter: str = "",  # noqa: A002 - the contract's name
        *,
        experiments: Sequence[str | int] = (),
        order_by: Sequence[str] = (),
        visibility: Visibility = "active",
        include_data: bool = True,
        limit: int | None = None,
    ) -> Iterator[RunInfo]:
        """Yield the runs that a filter finds, in order, fetched page by page.

        Args:
            filter: for example `metrics.loss < 0.3 AND params.model = 'xgboost'`; the
                language is in docs/search.md, a superset of MLflow's. Empty: all.
            experiments: names or ids; none: the whole workspace.
            order_by: for example `["metrics.loss ASC"]`; default: newest first.
            visibility: `active`, `deleted` or `all`.
            include_data: whether params, tags, summary and metrics come along.
            limit: the most runs to yield.

        Raises:
            GatewayError: FILTER_INVALID names the column; EXPERIMENT_NOT_FOUND, …
        """
        chosen = [experiments] if isinstance(experiments, str | int) else experiments
        request = pb.SearchRunsRequest(
            experiment_ids=[one for one in chosen if isinstance(one, int)],
            experiments=[one for one in chosen if isinstance(one, str)],
            filter=filter,
            order_by=[order_by] if isinstance(order_by, str) else order_by,
            visibility=visibility_value(visibility),
            page_size=_PAGE_SIZE,
            include_data=include_data,
        )
        left = limit
        while left is None or left > 0:
            if left is not None:
                request.page_size = min(left, _PAGE_SIZE)
            page = self._call(self._run_service.SearchRuns, request)
            yield from map(run_info, page.runs)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
            left = None if left is None else left - len(page.runs)

    def find_run(self, text: str, *, visibility: Visibility = "active") -> RunInfo:
        """Return the run that a user means: by its id, the id's first digits (at least 6), or
        its name when only one run has it; `visibility` says whose names and digits count.

        Raises:
            LookupError: none, or several; names the candidates.
            GatewayError: …
        """
        bare = text.replace("-", "").lower()
        if is_identifier(bare):
            return self.run(bare)

        def found(condition: str) -> list[RunInfo]:
            runs = self.search_runs(
                condition, visibility=visibility, include_data=False, limit=_CANDIDATES_MAX
            )
            return list(runs)

        candidates = found(f"attributes.run_name = {_quoted(text)}")
        if not candidates and len(bare) >= _DIGITS_MIN and _HEX.fullmatch(bare):
            candidates = found(f"attributes.run_id LIKE {_quoted(bare + '%')}")
        if len(candidates) == 1:
            return self.run(candidates[0].run_id)
        if not candidates:
            raise LookupError(f"no run has the id or name {text!r}; `headrace runs ls` lists them")
        names = ", ".join(f"{run.run_id} ({run.name})" for run in candidates)
        raise LookupError(f"{text!r} means several runs; give more of the id: {names}")

    def compare(
        self, run_ids: Sequence[str], *, metrics: Sequence[str] = (), differing: bool = False
    ) -> Comparison:
        """Return a table of runs: a row each, with params and last, least and greatest metrics.

        Args:
            run_ids: the runs, in the order of the rows.
            metrics: keys; none: all but `system/…`.
            differing: only the params in which the runs differ.

        Raises:
            GatewayError: RUN_NOT_FOUND, …
        """
        return compared([self.run(run_id) for run_id in run_ids], metrics, differing=differing)

    def update_run(
        self, run_id: str, *, name: str | None = None, notes: str | None = None
    ) -> RunInfo:
        """Rename a run, or replace its notes; return it as stored.

        Raises:
            GatewayError: RUN_NOT_FOUND, LIMIT_EXCEEDED, …
        """
        given = {"name": name, "notes": notes}
        request = pb.UpdateRunRequest(
            run_id=run_id,
            run=pb.Run(name=name or "", notes=notes or ""),
            update_mask=FieldMask(paths=[key for key in given if given[key] is not None]),
        )
        return run_info(self._call(self._run_service.UpdateRun, request).run)

    def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Set tags of a run.

        Raises:
            GatewayError: RUN_NOT_FOUND, LIMIT_EXCEEDED, …
        """
        self._write_entries(
            run_id,
            [
                pb.MetadataEntry(tag=pb.Tag(key=key, value=param_text(value)))
                for key, value in tags.items()
            ],
        )

    def delete_tags(self, run_id: str, *keys: str) -> None:
        """Delete tags of a run; one that is not there is no error.

        Raises:
            GatewayError: RUN_NOT_FOUND, …
        """
        self._write_entries(run_id, [pb.MetadataEntry(deleted_tag=key) for key in keys])

    def delete_run(self, run_id: str) -> RunInfo:
        """Hide a run from searches; it is purged after the gateway's grace period.

        Raises:
            GatewayError: RUN_NOT_FOUND; RUN_PROTECTED for one with the tag `headrace.protected`.
        """
        request = pb.DeleteRunRequest(run_id=run_id)
        return run_info(self._call(self._run_service.DeleteRun, request).run)

    def restore_run(self, run_id: str) -> RunInfo:
        """Take a deletion back.

        Raises:
            GatewayError: RUN_NOT_FOUND, RUN_PURGED, …
        """
        request = pb.RestoreRunRequest(run_id=run_id)
        return run_info(self._call(self._run_service.RestoreRun, request).run)

    def _run_message(self, run_id: str) -> pb.Run:
        return self._call(self._run_service.GetRun, pb.GetRunRequest(run_id=run_id)).run

    def _write_entries(self, run_id: str, entries: Sequence[pb.MetadataEntry]) -> None:
        """Write entries in order, in as many calls as the limits ask for."""
        request = pb.WriteMetadataRequest(run_id=run_id)
        size = 0
        for entry in entries:
            more = entry.ByteSize()
            full = len(request.entries) == ENTRIES_MAX or size + more > METADATA_BYTES_MAX
            if request.entries and full:
                self._call(self._run_service.WriteMetadata, request)
                request = pb.WriteMetadataRequest(run_id=run_id)
                size = 0
            request.entries.append(entry)
            size += more
        if request.entries:
            self._call(self._run_service.WriteMetadata, request)


def _quoted(text: str) -> str:
    """A string of the filter language."""
    return "'" + text.replace("'", "''") + "'"
