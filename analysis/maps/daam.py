"""What the tool DAAM computes where that differs from the definition (github.com/castorini/daam)."""

from __future__ import annotations

import math
from typing import Final

from attrace.analysis.maps.plans import Size, finest_grid
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.trace import Trace
from attrace.schemas import InputError, SiteClass

KEYS: Final = 77
"""It takes only layers with as many keys as CLIP has text tokens."""

LEFT_OUT_FACTOR: Final = 8
"""It leaves out layers of its smallest grid: the square root of the cells of its map over those of the layer, rounded
down, is this."""

SIDES: Final = {512: 64, 1024: 64}
"""Side of its map by the side of the picture that the denoiser is made for; 96 for any other."""

OTHER_SIDE: Final = 96

EPSILON: Final = 1e-6
"""Added to the sum over the words that a map is divided by."""

LATENT_FACTOR: Final = 8
"""Pixels of the picture in one cell of the latent, along each axis."""


def side(trace: Trace) -> int:
    """Rows and columns of its map, from the denoiser's `sample_size`, or the picture where that is not known."""
    cells = (trace.manifest.denoiser.config or {}).get("sample_size")
    if isinstance(cells, int):
        return SIDES.get(cells * LATENT_FACTOR, OTHER_SIDE)
    return SIDES.get(max(trace.manifest.image_size or (0,)), OTHER_SIDE)


def default_size(trace: Trace) -> Size:
    """Its size of a map; the finest grid for a picture that is not square, which it refuses."""
    rows, columns = finest_grid(trace, "r2g")
    return (side(trace),) * 2 if rows == columns else (rows, columns)


def taken(trace: Trace, selected: SelectedClass) -> SelectedClass | None:
    """The layers of a class that it takes: of the blocks down and up; None if it takes none."""
    site_class = selected.site_class
    factor = math.isqrt(side(trace) ** 2 // site_class.queries)
    if site_class.keys != KEYS or factor == LEFT_OUT_FACTOR:
        return None
    layers = tuple(
        layer for layer, path in zip(selected.layers, selected.paths, strict=True) if "mid_block" not in path
    )
    return SelectedClass(site_class, layers, selected.heads) if layers else None


def word_places(site_class: SiteClass) -> range:
    """Places of the words of the prompt: after the first token, before the one that ends it and the padding.

    Raises
    ------
    InputError
        If the trace does not know the tokens.
    """
    if site_class.tokens is None:
        raise InputError(f"normalise: the trace does not know how many words the tokens of {site_class.group} hold")
    words = sum(segment.count for segment in site_class.key_segments if segment.kind == "text")
    return range(1, words - 1)
