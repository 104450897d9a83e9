"""What an explorer is told of a trace: its pictures, and for each context its grids, words, layers, heads and steps."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from attrace.analysis.explorer.plan import listed_keys
from attrace.analysis.maps.masks import trace_mask
from attrace.analysis.maps.sram import picture_size
from attrace.schemas import SelectionError
from attrace.schemas.layers import short_labels

if TYPE_CHECKING:
    from attrace.analysis.explorer.plan import ReportPlan
    from attrace.analysis.trace.trace import Trace

LONGEST_SIDE: Final = 768
"""Pixels along the longer side of a picture, at most."""

LOSSLESS_SIDE: Final = 128
"""Pixels up to which a picture is kept without loss."""

COLOURS: Final = ("inferno", "viridis", "gray")
"""Colour maps that rise in lightness, so that they read the same for every kind of colour vision."""

NAMES: Final = {"reference": "Reference", "image-prompt": "Image prompt", "text": "Text", "self": "Own picture"}
"""What the keys of a context are called."""


def relations_of(trace: Trace) -> list[Trace]:
    """The trace in each of its contexts, the selected one first; that alone where it was asked for by name."""
    others = [] if trace.narrowed else [context for context in trace.contexts if context != trace.context]
    found = [trace]
    for context in others:
        try:
            found.append(trace.sel(context=context))
        except SelectionError:  # none of the selected layers or heads has it
            continue
    return [one.sel(picture=0) if one.pictures > 1 and one.picture is None else one for one in found]


def describe_trace(trace: Trace, relations: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Everything that an explorer knows before it asks for a map, as plain JSON."""
    mask = usable_mask(trace)
    known = trace.manifest.image_size is not None or "generated" in trace.images
    return {
        "name": name_of(trace),
        "generated": {
            "name": "Generated picture",
            "size": list(picture_size(trace, "g2r")) if known else None,
            "picture": picture_address(trace, "generated"),
        },
        "mask": None if mask is None else _address(np.where(mask, 255, 0).astype(np.uint8)),
        "colours": {name: _hexadecimal(name) for name in COLOURS},
        "relations": list(relations),
    }


def describe_relation(plan: ReportPlan, start: dict[str, list[int]]) -> dict[str, Any]:
    """The part of it that depends on the context; `start` holds the patch of each side that is chosen at first."""
    trace = plan.trace
    picture = "generated" if trace.context == "self" else trace.reference_name
    shown = plan.view == "picture" and picture in trace.images
    layers = list(trace.layers)
    return {
        "name": keys_name(trace),
        "context": trace.context,
        "kind": plan.view,
        "grids": {"generated": list(plan.grids["r2g"]), "keys": list(plan.grids["g2r"])},
        "size": list(trace.images[picture].shape[:2]) if shown else None,
        "picture": picture_address(trace, picture) if shown else None,
        "tokens": list(token_labels(plan)),
        "start": start,
        "layers": short_labels(layers),
        "heads": [f"head {head}" for head in trace.heads] if plan.heads_apart else [],
        "groups": group_labels(plan),
    }


def name_of(trace: Trace) -> str:
    """The name of a trace without where it lies: a page is shown to others."""
    return trace.path.rstrip("/").rpartition("/")[2]


def keys_name(trace: Trace) -> str:
    """What the keys are called, and which of several pictures they are."""
    name = NAMES[str(trace.context)]
    return name if trace.picture is None else f"{name} {trace.picture + 1} of {trace.pictures}"


def usable_mask(trace: Trace) -> NDArray[np.bool_] | None:
    """The mask of a trace, if it leaves something in and something out."""
    mask = trace_mask(trace)
    return mask if mask is not None and mask.any() and not mask.all() else None


def group_labels(plan: ReportPlan) -> list[str]:
    """Which calls of the denoiser each group of steps holds."""
    calls = [(int(plan.trace.time[span.start]), int(plan.trace.time[span.stop - 1])) for span in plan.spans]
    return [f"step {first}" if first == last else f"steps {first}\N{EN DASH}{last}" for first, last in calls]


def token_labels(plan: ReportPlan) -> tuple[str, ...]:
    """Texts of the keys, where they are a list; their kinds where the texts are not known."""
    if plan.view != "tokens":
        return ()
    site_class = plan.classes[0].site_class
    kinds = [segment.kind for segment in site_class.key_segments for _ in range(segment.count)]
    texts = site_class.tokens or tuple(f"{index}: {kind}" for index, kind in enumerate(kinds))
    return tuple(
        _readable(texts[first]) if size == 1 else f"padding (the mean of {size})"
        for first, size in listed_keys(site_class)
    )


def picture_address(trace: Trace, name: str) -> str | None:
    """A picture of a trace as a data URL, made smaller where it is large; None if there is none."""
    return _address(trace.images[name].values) if name in trace.images else None


def _address(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    picture = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    kind: dict[str, Any] = (
        {"format": "PNG"} if max(picture.size) <= LOSSLESS_SIDE else {"format": "WEBP", "quality": 90}
    )
    file = io.BytesIO()
    picture.save(file, **kind)
    return f"data:image/{kind['format'].lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _hexadecimal(name: str) -> str:
    """The 256 colours of a map, six hexadecimal digits each."""
    return np.asarray(np.rint(255 * colormaps[name](np.arange(256))[:, :3]), np.uint8).tobytes().hex()


def _readable(token: str) -> str:
    """A token without the marks of word edges that tokenizers write."""
    return token.removesuffix("</w>").replace("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", " ").replace("\u2581", " ")
