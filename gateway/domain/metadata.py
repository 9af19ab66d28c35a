"""What can be said of a run besides points: params, tags, notes, summary values, datasets, facts.

Values, their limits, and how many statements become one set of rows. Pure. The
same entries come by WriteMetadata, where a bad one fails the call, and in the
records of a stream, where a bad one is rejected and the rest is stored.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from uuid import UUID

from gateway.domain.errors import HeadraceError, Reason

ENTRIES_MAX: Final = 1_000
"""Entries of one message; MLflow's limit is 100 params, 100 tags and 1,000 metrics."""
KEY_CHARACTERS_MAX: Final = 250
PARAM_CHARACTERS_MAX: Final = 6_000
TAG_CHARACTERS_MAX: Final = 8_000
TEXT_CHARACTERS_MAX: Final = 65_535
DATASET_NAME_CHARACTERS_MAX: Final = 500
DATASET_DIGEST_CHARACTERS_MAX: Final = 64
DATASET_IDENTITY_BYTES_MAX: Final = 2_600
"""UTF-8 of a dataset's name, digest and context together, which are one entry of an index:
PostgreSQL's limit is 2,704, of which the run, headers and alignment take up to 60."""

PROTECTED_TAG: Final = "headrace.protected"
"""A run with this tag is neither deleted nor cleaned up, whatever the tag's value."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A setting; immutable."""

    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A label; `value` None deletes it."""

    key: str
    value: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Free text; replaces what was there."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryValue:
    """A result that the job computed itself."""

    key: str
    value: float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInput:
    """A dataset that the run used, identified by (name, digest, context)."""

    name: str
    digest: str
    context: str
    source_type: str
    source: str
    schema: str
    profile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A fact of the environment."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """An entry that sets nothing this gateway knows."""


Entry: TypeAlias = Param | Tag | Notes | SummaryValue | DatasetInput | Fact | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an entry is not stored.

    Attributes:
        place: whose entry it is: the caller's number.
        reason, key, field, detail: as in Rejection of metric_service.proto.
        current, value, limit: what a param is and was to be, or what exceeds which limit;
            for the ErrorInfo of a failed call.
    """

    place: int
    reason: Reason
    key: str
    field: str
    detail: str
    current: str | None = None
    value: str | None = None
    limit: int | None = None

    def error(self) -> HeadraceError:
        """Return the error of a call that fails with it."""
        return HeadraceError(
            self.reason,
            self.detail,
            field=self.field,
            value=self.value,
            limit=self.limit,
            key=self.key,
            current=self.current,
        )


@dataclass(slots=True, kw_only=True)
class MetadataRows:
    """The rows that some entries amount to. Of several statements on one thing the last counts,
    but of params and datasets the first.

    Attributes:
        params: (run, key) to (value, place).
        tags: (run, key) to the value; None deletes.
        notes, summary, facts, datasets: likewise.
        refusals: what is not stored. The store appends params that have another
            value, before COMMIT, so that they are known even when the answer to
            COMMIT is lost.
    """

    params: dict[tuple[UUID, str], tuple[str, int]] = field(default_factory=dict)
    tags: dict[tuple[UUID, str], str | None] = field(default_factory=dict)
    notes: dict[UUID, str] = field(default_factory=dict)
    summary: dict[tuple[UUID, str], float | str] = field(default_factory=dict)
    facts: dict[tuple[UUID, str], str] = field(default_factory=dict)
    datasets: dict[tuple[UUID, str, str, str], DatasetInput] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def add(self, run_id: UUID, entries: Iterable[Entry], place: int) -> None:
        """Take entries of one run in order; `place` says whose they are in a refusal."""
        for entry in entries:
            refusal = fault(entry, place)
            if refusal is not None:
                self.refusals.append(refusal)
                continue
            match entry:
                case Param():
                    value, _ = self.params.setdefault((run_id, entry.key), (entry.value, place))
                    if value != entry.value:
                        self.refusals.append(param_changed(entry.key, value, entry.value, place))
                case Tag():
                    self.tags[run_id, entry.key] = entry.value
                case Notes():
                    self.notes[run_id] = entry.text
                case SummaryValue():
                    self.summary[run_id, entry.key] = entry.value
                case Fact():
                    self.facts[run_id, entry.name] = entry.value
                case DatasetInput():
                    identity = (run_id, entry.name, entry.digest, entry.context)
                    self.datasets.setdefault(identity, entry)


def param_changed(key: str, current: str, value: str, place: int) -> Refusal:
    """Return the refusal of a param that has another value already."""
    return Refusal(
        place=place,
        reason=Reason.PARAM_CHANGED,
        key=key,
        field="param",
        detail=f"param {key!r} is {_short(current)} already, not {_short(value)}; "
        "params are immutable",
        current=current,
        value=value,
    )


def fault(entry: Entry, place: int = 0) -> Refusal | None:  # noqa: PLR0911 - one for each kind
    """Return why an entry cannot be stored, or None."""
    match entry:
        case Param():
            texts = [("param.value", entry.value, PARAM_CHARACTERS_MAX)]
            return _key_fault("param.key", entry.key, texts, place)
        case Tag():
            texts = [("tag.value", entry.value or "", TAG_CHARACTERS_MAX)]
            return _key_fault("tag.key", entry.key, texts, place)
        case Notes():
            return _text_fault("notes", [("notes", entry.text, TEXT_CHARACTERS_MAX)], place)
        case SummaryValue():
            text = entry.value if isinstance(entry.value, str) else ""
            texts = [("summary.text", text, PARAM_CHARACTERS_MAX)]
            return _key_fault("summary.key", entry.key, texts, place)
        case Fact():
            texts = [("fact.value", entry.value, PARAM_CHARACTERS_MAX)]
            return _key_fault("fact.name", entry.name, texts, place)
        case DatasetInput():
            if not entry.name:
                return Refusal(
                    place=place,
                    reason=Reason.FIELD_REQUIRED,
                    key="",
                    field="dataset.name",
                    detail="dataset.name is required",
                )
            texts = [
                ("dataset.name", entry.name, DATASET_NAME_CHARACTERS_MAX),
                ("dataset.digest", entry.digest, DATASET_DIGEST_CHARACTERS_MAX),
                ("dataset.context", entry.context, KEY_CHARACTERS_MAX),
                ("dataset.source_type", entry.source_type, KEY_CHARACTERS_MAX),
                ("dataset.source", entry.source, TEXT_CHARACTERS_MAX),
                ("dataset.schema", entry.schema, TEXT_CHARACTERS_MAX),
                ("dataset.profile", entry.profile, TEXT_CHARACTERS_MAX),
            ]
            return _text_fault(entry.name, texts, place) or _identity_fault(entry, place)
        case Unknown():
            return Refusal(
                place=place,
                reason=Reason.FIELD_REQUIRED,
                key="",
                field="entries",
                detail="the entry sets nothing that this gateway knows",
            )


def _key_fault(
    name: str, key: str, texts: list[tuple[str, str, int]], place: int
) -> Refusal | None:
    detail = None
    if not key:
        detail = f"{name} is empty"
    elif len(key) > KEY_CHARACTERS_MAX:
        detail = f"{name} has {len(key)} characters, more than {KEY_CHARACTERS_MAX}"
    elif _CONTROL.search(key):
        detail = f"{name} contains a control character"
    if detail is not None:
        return Refusal(
            place=place, reason=Reason.FIELD_INVALID, key=_shown(key), field=name, detail=detail
        )
    return _text_fault(key, texts, place)


def _text_fault(key: str, texts: list[tuple[str, str, int]], place: int) -> Refusal | None:
    for name, text, characters_max in texts:
        reason, detail = Reason.LIMIT_EXCEEDED, None
        if len(text) > characters_max:
            detail = f"{name} has {len(text)} characters, more than {characters_max}"
        elif "\0" in text:
            reason, detail = Reason.FIELD_INVALID, f"{name} contains NUL"
        if detail is not None:
            return Refusal(place=place, reason=reason, key=_shown(key), field=name, detail=detail)
    return None


def _identity_fault(entry: DatasetInput, place: int) -> Refusal | None:
    size_bytes = len((entry.name + entry.digest + entry.context).encode())
    if size_bytes <= DATASET_IDENTITY_BYTES_MAX:
        return None
    return Refusal(
        place=place,
        reason=Reason.FIELD_INVALID,
        key=_shown(entry.name),
        field="dataset",
        detail=f"dataset.name, digest and context have {size_bytes} bytes in UTF-8 together, "
        f"more than {DATASET_IDENTITY_BYTES_MAX}",
        value=str(size_bytes),
        limit=DATASET_IDENTITY_BYTES_MAX,
    )


def _shown(key: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", key[:KEY_CHARACTERS_MAX])


def _short(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")
