"""The words in a figure: what a map shows, of which selection, in which unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import xarray as xr

from attrace.schemas.layers import short_labels

LEVEL_NAMES: Final = {
    "ulam": "Unified attribution map (ULAM)",
    "tlam": "Attribution over time (TLAM)",
    "hlam": "Attribution by head (HLAM)",
    "llam": "Attribution by layer (LLAM)",
    "sram": "Attribution of chosen patches (SRAM)",
}

DIRECTION_NAMES: Final = {
    "r2g": "reference \N{RIGHTWARDS ARROW} generated (R2G)",
    "g2r": "generated \N{RIGHTWARDS ARROW} reference (G2R)",
}

SEPARATOR: Final = " \N{MIDDLE DOT} "


def title_of(heat: xr.DataArray) -> str:
    """Level and direction of a map, from its attributes; its name where they do not tell."""
    level = LEVEL_NAMES.get(str(heat.attrs.get("level")))
    direction = DIRECTION_NAMES.get(str(heat.attrs.get("direction")))
    return ", ".join(part for part in (level, direction) if part) or str(heat.name or "Attention map")


def subtitle_of(heat: xr.DataArray) -> str:
    """What was averaged, as far as the attributes of the map tell."""
    attributes = heat.attrs
    context, branch = str(attributes.get("context", "")), str(attributes.get("branch", ""))
    return joined(
        [
            f"{context} context" if context not in ("", "reference") else "",
            f"picture {attributes['picture']}" if "picture" in attributes else "",
            f"{branch} branch" if branch not in ("", "conditional", "None") else "",
            *(counted(int(attributes[f"{noun}s"]), noun) for noun in ("step", "layer") if f"{noun}s" in attributes),
        ]
    )


def labels_along(heat: xr.DataArray, dim: str) -> list[str]:
    """Label of each panel along a dimension."""
    if dim == "time_group" and {"first_call", "last_call"} <= set(heat.coords):
        calls = zip(heat["first_call"].values.tolist(), heat["last_call"].values.tolist(), strict=True)
        return [f"step {first}" if first == last else f"steps {first}\N{EN DASH}{last}" for first, last in calls]
    values = heat[dim].values.tolist()
    if dim == "layer":
        return short_labels([str(value) for value in values])
    return [f"{dim.replace('_', ' ')} {value}" for value in values]


def wrapped(text: str, width: int) -> str:
    r"""Text in at most two lines of that many characters, broken after a dot or a space, its start cut off.

    Examples
    --------
    >>> wrapped("down_blocks.0.attentions.1", 16)
    'down_blocks.0.\nattentions.1'
    """
    if len(text) <= width:
        return text
    breaks = [place + 1 for place, letter in enumerate(text) if letter in ". " and len(text) - place - 1 <= width]
    at = max((place for place in breaks if place <= width), default=min(breaks, default=len(text) - width))
    first, second = text[:at], text[at:]
    if len(first) > width:
        first = "\N{HORIZONTAL ELLIPSIS}" + first[1 - width :]
    return f"{first.rstrip()}\n{second}"


def counted(count: int, noun: str) -> str:
    """A number of things.

    Examples
    --------
    >>> counted(1, "layer"), counted(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def joined(parts: Sequence[str]) -> str:
    """Parts of a line of text, those that say nothing left out."""
    return SEPARATOR.join(part for part in parts if part)


def grid_text(size: Sequence[int]) -> str:
    """A size, with a multiplication sign."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, size))
