"""Plots of series: text for a terminal, or an image file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from headrace.columns import SeriesColumns
from headrace.errors import ConfigurationError

TICKS: Final = 6
"""Values named at the side of a terminal plot."""

IMAGE_ENDINGS: Final = frozenset({".png", ".svg", ".pdf"})


def terminal_plot(
    series: Sequence[SeriesColumns],
    *,
    title: str,
    log_scale: bool,
    width: int,
    height: int,
    colours: bool,
) -> str:
    """Return lines of text that show the series over their steps. NaN and infinities are left out.

    Args:
        series: one or more.
        title: above the plot.
        log_scale: of the values; those of zero and below are left out then.
        width, height: in characters.
        colours: whether escape codes tell the series apart.
    """
    import plotext  # noqa: PLC0415 - only where a plot is drawn

    plotext.clear_figure()
    plotext.theme("pro" if colours else "clear")
    plotext.plotsize(width, height)
    plotext.title(title)
    plotext.xlabel("step")
    if log_scale:
        plotext.yscale("log")
    shown: list[float] = []
    for one in series:
        sound = np.isfinite(one.value) & ((one.value > 0) | (not log_scale))
        steps, values = one.step[sound].tolist(), one.value[sound].tolist()
        shown += [min(values), max(values)] if values else []
        if steps:
            plotext.plot(steps, values, label=label(one, series))
    if not shown:
        return f"{title}: no finite points"
    space = np.geomspace if log_scale else np.linspace
    ticks = [float(tick) for tick in space(min(shown), max(shown), TICKS)]
    plotext.yticks(ticks, [f"{tick:.4g}" for tick in ticks])
    text = plotext.build()
    return str(text if colours else plotext.uncolorize(text)).rstrip()


def image_plot(series: Sequence[SeriesColumns], path: Path, *, title: str, log_scale: bool) -> None:
    """Draw the series over their steps into a .png, .svg or .pdf file.

    Raises:
        ConfigurationError: another ending.
        ImportError: Matplotlib is not installed.
        OSError: the file cannot be written.
    """
    if path.suffix.lower() not in IMAGE_ENDINGS:
        raise ConfigurationError(
            f"the output is {path.name!r}; it must end in one of {sorted(IMAGE_ENDINGS)}"
        )
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(
            "plots as files need Matplotlib: pip install 'headrace[plots]'"
        ) from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for one in series:
        axes.plot(one.step, one.value, label=label(one, series), linewidth=1.2)
    axes.set(title=title, xlabel="step")
    if log_scale:
        axes.set_yscale("log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def label(one: SeriesColumns, series: Sequence[SeriesColumns]) -> str:
    """The key, with the rank where the key alone would not tell."""
    alone = sum(other.key == one.key for other in series) == 1
    return one.key if alone else f"{one.key} rank {one.rank}"
