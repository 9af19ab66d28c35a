"""The page for operators has every setting as the code has it, and names metrics that exist."""

import re
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from prometheus_client import CollectorRegistry
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from gateway.canary.measurements import Measurements
from gateway.config import PREFIX, Settings
from gateway.telemetry import Metrics

PAGE: Final = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")


def settings_table() -> list[list[str]]:
    """Return name, variable, default, range and description of each row."""
    return [
        [cell.replace("`", "").strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("| `") and PREFIX in line
    ]


def shown(value: Any, *, size: bool) -> str:
    """Return a value as the page writes it; `size` is of bytes."""
    if value is None or value in ("", ()):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if size:
        return f"{value >> 10} KiB" if value % 2**20 else f"{value >> 20} MiB"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if value == int(value) else str(value)
    return str(value)


def shown_range(field: FieldInfo) -> str:
    """Return what a setting may be, as the page writes it; empty where its type says it all."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(choice or "none" for choice in get_args(field.annotation))
    bounds = {
        name: shown(getattr(rule, name), size=field.annotation is ByteSize)
        for rule in field.metadata
        for name in ("ge", "gt", "le")
        if hasattr(rule, name)
    }
    low = f"above {bounds['gt']}" if "gt" in bounds else bounds.get("ge", "")
    if "le" in bounds:
        return f"{low} to {bounds['le']}"
    return f"at least {low}" if low else ""


def test_the_page_has_every_setting_in_the_order_of_the_code_and_no_other() -> None:
    assert [row[0] for row in settings_table()] == list(Settings.model_fields)


def test_the_page_has_the_variable_default_and_range_of_each_setting() -> None:
    for name, variable, default, range_, description in settings_table():
        field = Settings.model_fields[name]
        assert variable == PREFIX + name.upper()
        preset = field.get_default(call_default_factory=True, validated_data={})
        assert default == shown(preset, size=field.annotation is ByteSize), name
        assert range_ == shown_range(field), name
        assert description, name


def test_every_metric_that_the_page_names_is_exported() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    families = [*registry.collect(), *Measurements().registry.collect()]
    exported = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    }
    assert set(re.findall(r"headrace_[a-z_]+", PAGE)) <= exported
