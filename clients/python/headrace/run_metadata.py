"""What `Run` offers to say of itself: params, tags, notes, summary values, datasets.

Every call travels through the spool like a log call: it returns after one
write, survives the death of the trainer, and arrives once and in order.
"""

from abc import ABC
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from headrace import metadata_entries as entries
from headrace.errors import InvalidMetadataError
from headrace.recorder import Recorder


class Dataset(Protocol):
    """What `mlflow.data` datasets offer."""

    def to_dict(self) -> dict[str, str]:
        """Name, digest, source_type, source, schema and profile."""


class Config(Mapping[str, Any]):
    """The params of a run that this process set; setting one records it.

    A param is immutable: setting it to another value is refused by the gateway,
    warned of, counted in `run.status().rejected_entries`, and raises only when
    strict. Nested mappings become `a/b` keys. Values are read back as they were
    set and recorded as text.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Config({self._values!r})"

    def update(self, values: Mapping[str, Any]) -> None:
        """Sets params."""
        flat = entries.flat_params(values, self._recorder.refuse_entry)
        for key, value in flat.items():
            known = self._values.get(key, value)
            if entries.param_text(known) != entries.param_text(value):
                self._recorder.changed_param(
                    f"param {key!r} is {known!r} already, not {value!r}; params are immutable"
                )
        self._recorder.write(
            [entries.param(key, entries.param_text(value)) for key, value in flat.items()]
        )
        for key, value in flat.items():
            self._values.setdefault(key, value)


class Summary(Mapping[str, float | str]):
    """Results that the job computed itself; setting one records it, the last one stays.

    Numbers and texts; nested mappings become `a/b` keys.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._values: dict[str, float | str] = {}

    def __getitem__(self, key: str) -> float | str:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Summary({self._values!r})"

    def update(self, values: Mapping[str, Any]) -> None:
        """Sets summary values."""
        flat = entries.flat_summary(values, self._recorder.refuse_entry)
        self._recorder.write([entries.summary(key, value) for key, value in flat.items()])
        self._values.update(flat)


class MetadataMethods(ABC):
    """The methods. `config` and `summary` are mappings that write through."""

    _recorder: Recorder
    config: Config
    summary: Summary

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Sets params; the same as `run.config.update`.

        Raises:
            InvalidMetadataError: only when strict; see Config.
        """
        self.config.update(params)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags; those with these keys are replaced.

        Raises:
            InvalidMetadataError: only when strict: a key or value too long, …
        """
        flat = entries.flat_tags(tags, self._recorder.refuse_entry)
        self._recorder.write([entries.tag(key, value) for key, value in flat.items()])

    def delete_tags(self, *keys: str) -> None:
        """Deletes tags; one that is not there is no error."""
        self._write_each([lambda key=key: entries.deleted_tag(key) for key in keys])

    def set_notes(self, text: str) -> None:
        """Replaces the run's notes."""
        self._write_each([lambda: entries.notes(text)])

    def log_dataset(
        self,
        dataset: str | Dataset,
        *,
        digest: str = "",
        context: str = "",
        source: str = "",
        source_type: str = "",
        schema: Any = "",
        profile: Any = "",
    ) -> None:
        """Says that the run used a dataset. The same (name, digest, context) is recorded once.

        Args:
            dataset: its name, or a dataset of `mlflow.data`, which knows the
                other fields by itself.
            digest: identifies the content, for example a hash.
            context: what it was used for, for example `training`.
            source: where it is.
            source_type: the kind of source, for example `s3`.
            schema, profile: text, or anything that becomes JSON.

        Raises:
            InvalidMetadataError: only when strict.
        """

        def encode() -> bytes:
            fields = {"name": dataset} if isinstance(dataset, str) else dict(dataset.to_dict())
            given = {
                "digest": digest,
                "source": source,
                "source_type": source_type,
                "schema": entries.json_text(schema),
                "profile": entries.json_text(profile),
            }
            fields.update({name: text for name, text in given.items() if text})
            return entries.dataset(context=context, **fields)

        self._write_each([encode])

    def _write_each(self, encoders: list[Any]) -> None:
        encoded = []
        for encode in encoders:
            try:
                encoded.append(encode())
            except InvalidMetadataError as error:
                self._recorder.refuse_entry(str(error))
            except Exception as error:  # of a dataset's own methods: training goes on
                self._recorder.refuse_entry(f"{type(error).__name__}: {error}")
        self._recorder.write(encoded)
