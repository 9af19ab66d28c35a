"""What is said of a run → entries in wire form, or why no gateway would take them. Pure.

An entry is one `entries` field of MetadataBatch (metric_service.proto), so
that a sender joins what the spool holds and looks at none of it. Importing
this imports no protobuf.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from headrace.errors import InvalidMetadataError
from headrace.limits import (
    DATASET_DIGEST_CHARACTERS_MAX,
    DATASET_IDENTITY_BYTES_MAX,
    DATASET_NAME_CHARACTERS_MAX,
    KEY_CHARACTERS_MAX,
    PARAM_CHARACTERS_MAX,
    TAG_CHARACTERS_MAX,
    TEXT_CHARACTERS_MAX,
)
from headrace.scalars import key_fault, leaves, to_float
from headrace.wire_format import bytes_field, double_field

_ENTRIES_FIELD: Final = 3
_SHOWN_CHARACTERS: Final = 80

Refuse = Callable[[str], None]
"""Takes the reason why an entry is left out; raises it instead when strict."""


def param(key: str, value: str) -> bytes:
    """Sets a param.

    Raises:
        InvalidMetadataError: names key, limit and value; so do all below.
    """
    return _pair(1, "param", key, value, PARAM_CHARACTERS_MAX)


def tag(key: str, value: str) -> bytes:
    """Sets a tag."""
    return _pair(2, "tag", key, value, TAG_CHARACTERS_MAX)


def deleted_tag(key: str) -> bytes:
    """Deletes a tag."""
    return _entry(3, _key("tag", key))


def notes(text: str) -> bytes:
    """Replaces the notes."""
    return _entry(4, _text("notes", text, TEXT_CHARACTERS_MAX))


def summary(key: str, value: float | str) -> bytes:
    """Sets a summary value."""
    name = bytes_field(1, _key("summary", key))
    if isinstance(value, str):
        text = _text(f"summary {key!r}", value, PARAM_CHARACTERS_MAX)
        return _entry(5, name + bytes_field(3, text))
    return _entry(5, name + double_field(2, value))


def dataset(  # one argument for each field of DatasetInput
    *,
    name: str,
    digest: str = "",
    context: str = "",
    source_type: str = "",
    source: str = "",
    schema: str = "",
    profile: str = "",
) -> bytes:
    """Adds a dataset input."""
    if not name:
        raise InvalidMetadataError("a dataset has no name")
    fields = (
        (1, "name", name, DATASET_NAME_CHARACTERS_MAX),
        (2, "digest", digest, DATASET_DIGEST_CHARACTERS_MAX),
        (3, "context", context, KEY_CHARACTERS_MAX),
        (4, "source_type", source_type, KEY_CHARACTERS_MAX),
        (5, "source", source, TEXT_CHARACTERS_MAX),
        (6, "schema", schema, TEXT_CHARACTERS_MAX),
        (7, "profile", profile, TEXT_CHARACTERS_MAX),
    )
    encoded = [
        bytes_field(number, _text(f"{what} of dataset {_short(name)}", text, limit))
        for number, what, text, limit in fields
        if text
    ]
    identity_bytes = len((name + digest + context).encode())
    if identity_bytes > DATASET_IDENTITY_BYTES_MAX:
        raise InvalidMetadataError(
            f"name, digest and context of dataset {_short(name)} have {identity_bytes:,} bytes "
            f"together; the limit is {DATASET_IDENTITY_BYTES_MAX:,}"
        )
    return _entry(6, b"".join(encoded))


def flat_params(values: Mapping[Any, Any], refuse: Refuse) -> dict[str, Any]:
    """Params by flat `a/b` keys; the values as they are."""
    return _flat(values, refuse, lambda key, value: param(key, param_text(value)))


def flat_summary(values: Mapping[Any, Any], refuse: Refuse) -> dict[str, float | str]:
    """Summary values by flat `a/b` keys, as floats and texts."""
    flat = _flat(values, refuse, lambda key, value: summary(key, summary_value(value)))
    return {key: summary_value(value) for key, value in flat.items()}


def flat_tags(values: Mapping[Any, Any], refuse: Refuse) -> dict[str, str]:
    """Tags by key, as texts; nested mappings become `a/b` keys."""
    flat = _flat(values, refuse, lambda key, value: tag(key, param_text(value)))
    return {key: param_text(value) for key, value in flat.items()}


def param_text(value: Any) -> str:
    """The text of a param or tag: `str` of it, as MLflow does."""
    return value if isinstance(value, str) else str(value)


def summary_value(value: Any) -> float | str:
    """A number or a text.

    Raises:
        InvalidMetadataError: neither.
    """
    if isinstance(value, str):
        return value
    number = to_float(value)
    if number is None:
        raise InvalidMetadataError(
            f"a summary value is a number or text, not {type(value).__name__}: {_short(value)}"
        )
    return number


def json_text(value: Any) -> str:
    """A schema or profile: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _flat(values: object, refuse: Refuse, encode: Callable[[str, Any], bytes]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        refuse(f"a mapping of keys to values is needed, not {type(values).__name__}")
        return {}
    found = {}
    for key, value in leaves(values, lambda _, text: refuse(text)):
        try:
            encode(key, value)
        except InvalidMetadataError as error:
            refuse(str(error))
        except Exception as error:  # of a value's own `__str__`
            refuse(f"the value of {key!r} has no text: {type(error).__name__}: {error}")
        else:
            found[key] = value
    return found


def joined(
    entries: list[bytes], *, entries_max: int, bytes_max: int
) -> Iterator[tuple[int, bytes]]:
    """Entries as the contents of records: (count, bytes), within both limits."""
    some: list[bytes] = []
    size = 0
    for entry in entries:
        if some and (len(some) == entries_max or size + len(entry) > bytes_max):
            yield len(some), b"".join(some)
            some, size = [], 0
        some.append(entry)
        size += len(entry)
    if some:
        yield len(some), b"".join(some)


def _pair(number: int, what: str, key: str, value: str, characters_max: int) -> bytes:
    name = bytes_field(1, _key(what, key))
    text = _text(f"{what} {_short(key)}", value, characters_max)
    return _entry(number, name + (bytes_field(2, text) if text else b""))


def _entry(number: int, content: bytes) -> bytes:
    return bytes_field(_ENTRIES_FIELD, bytes_field(number, content))


def _key(what: str, key: str) -> bytes:
    fault = key_fault(key)
    if fault is not None:
        raise InvalidMetadataError(f"{what}: {fault}")
    return key.encode()


def _text(what: str, text: str, characters_max: int) -> bytes:
    if not isinstance(text, str):
        raise InvalidMetadataError(f"{what} must be text, not {type(text).__name__}")
    if len(text) > characters_max:
        raise InvalidMetadataError(
            f"{what} has {len(text):,} characters; the limit is {characters_max:,}: {_short(text)}"
        )
    if "\0" in text:
        raise InvalidMetadataError(f"{what} contains NUL: {_short(text)}")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidMetadataError(f"{what} is not valid Unicode: {_short(text)}") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
