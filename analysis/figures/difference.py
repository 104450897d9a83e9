"""Figures of two sets of maps and of what lies between them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from attrace.analysis.figures.draw import QUIET, TEXT_SIZE
from attrace.analysis.figures.text import labels_along, wrapped

SEQUENTIAL: Final = "viridis"
DIVERGING: Final = "PuOr_r"
"""Orange above 0 and purple below: told apart by colour-blind readers, too."""

PANEL: Final = 1.25
"""Inches along a panel."""


def draw_difference(a: xr.DataArray, b: xr.DataArray, difference: xr.DataArray, names: tuple[str, str]) -> Figure:
    """Draw mean maps of two sets and the mean difference: three rows, a column for each label.

    Parameters
    ----------
    a, b, difference
        (row, column), or with one more dimension first: a column of panels for each of its labels. Both sets share a
        colour scale; that of the difference is even about 0.
    names
        Of the two sets.
    """
    dim = None if difference.ndim == 2 else str(difference.dims[0])
    stacks = [np.asarray(one.values, np.float64).reshape(-1, *one.shape[-2:]) for one in (a, b, difference)]
    labels = [""] if dim is None else labels_along(a, dim)
    shown = np.stack(stacks[:2])
    low, high = (float(end) for end in (np.nanmin(shown), np.nanmax(shown)))
    reach = float(np.nanmax(np.abs(stacks[2]))) or 1.0
    scales = [Normalize(low, high if high > low else low + 1)] * 2 + [Normalize(-reach, reach)]
    columns = len(labels)
    figure = Figure(figsize=(0.95 + PANEL * columns + 0.8, 0.45 + (PANEL + 0.1) * 3), facecolor="white")
    axes = figure.subplots(3, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.9 / figure.get_figwidth(),
        right=1 - 0.75 / figure.get_figwidth(),
        top=1 - 0.4 / figure.get_figheight(),
        bottom=0.04,
        wspace=0.08,
        hspace=0.08,
    )
    titles = [*names, "difference"]
    for across, title, scale, stack in zip(axes, titles, scales, stacks, strict=True):
        colours = DIVERGING if title is titles[-1] else SEQUENTIAL
        for axis, values in zip(across, stack, strict=True):
            axis.imshow(values, cmap=colours, norm=scale, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(linewidth=0.5, color=QUIET)
        across[0].set_ylabel(wrapped(title, 14), size=TEXT_SIZE, parse_math=False)
        _bar(figure, across[-1], scale, colours)
    for axis, label in zip(axes[0], labels, strict=True):
        axis.set_title(wrapped(label, 18), size=TEXT_SIZE - 1, loc="left", parse_math=False)
    return figure


def _bar(figure: Figure, axis: Any, scale: Normalize, colours: str) -> None:
    box = axis.get_position()
    place = (box.x1 + 0.1 / figure.get_figwidth(), box.y0, 0.1 / figure.get_figwidth(), box.height)
    bar = figure.colorbar(ScalarMappable(scale, colours), cax=figure.add_axes(place))
    bar.ax.tick_params(labelsize=TEXT_SIZE - 1.5, width=0.5, length=2)
    bar.ax.ticklabel_format(axis="y", scilimits=(-2, 3))
    bar.ax.yaxis.get_offset_text().set_fontsize(TEXT_SIZE - 1.5)
    bar.outline.set(linewidth=0.5, edgecolor=QUIET)
