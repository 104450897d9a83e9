"""A figure of deletion and insertion curves."""

from __future__ import annotations

from typing import Final

import numpy as np
from matplotlib.figure import Figure

from attrace.analysis.figures.draw import TEXT_SIZE
from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.analysis.scores.faithfulness import ORDERS, Faithfulness

COLOURS: Final = {"top": "#d55e00", "random": "0.35", "bottom": "#0072b2"}
"""Of the palette of Okabe and Ito, told apart by colour-blind readers, too."""

DASHES: Final = {"top": "-", "random": "--", "bottom": ":"}


def draw_curves(found: Faithfulness, *, seed: int = 0) -> Figure:
    """Draw the mean change over the inputs for each order, with its 95 % bootstrap interval."""
    figure = Figure(figsize=(7.2, 3.0), facecolor="white", layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    shown = 1 - np.array(found.fractions)[::-1]
    for axis, title, places, curves in (
        (axes[0], "deletion: hidden first", np.array(found.fractions), found.deletion),
        (axes[1], "insertion: shown first", shown, found.insertion),
    ):
        for order in ORDERS:
            low, high = bootstrap_interval(curves[order], seed=seed)
            axis.fill_between(places, low, high, color=COLOURS[order], alpha=0.15, linewidth=0)
            axis.plot(places, curves[order].mean(axis=0), DASHES[order], color=COLOURS[order], label=order, marker=".")
        axis.set_title(title, size=TEXT_SIZE + 1, loc="left")
        axis.set_xlabel(f"share of patches {title.partition(': ')[2].removesuffix(' first')}", size=TEXT_SIZE)
        axis.tick_params(labelsize=TEXT_SIZE - 0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("change of the picture", size=TEXT_SIZE)
    axes[0].legend(fontsize=TEXT_SIZE, frameon=False)
    axes[0].set_ylim(bottom=0)
    return figure
