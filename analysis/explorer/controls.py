"""The controls of a report: Bokeh's widgets, all of them usable from the keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from attrace.analysis.explorer.plan import ReportPlan

DIRECTION_NAMES: Final = {"g2r": "Where it comes from", "r2g": "Where it goes"}
REGION_NAMES: Final = {"patch": "Patch", "box": "Drag a box", "mask": "The mask"}
LEVEL_NAMES: Final = {"ulam": "Unified", "tlam": "Time", "hlam": "Heads", "llam": "Layers"}

PALETTES: Final = {"cividis": "Cividis256", "viridis": "Viridis256", "grey": "Greys256"}
"""Palettes that rise in lightness, so that they read the same for every kind of colour vision."""


def controls(plan: ReportPlan, *, directions: list[str], groups: list[str], regions: list[str]) -> dict[str, Any]:
    """Every control by its name; all of them fill the width that the page gives them."""
    from bokeh.models import Checkbox, CustomJSTickFormatter, RadioButtonGroup, Select, Slider

    wide: dict[str, Any] = {"sizing_mode": "stretch_width"}
    heads = [("-1", "all heads (mean)")]
    heads += [(str(head), f"head {head}") for head in plan.trace.heads] if plan.heads_apart else []
    layers = [("-1", "all layers (mean)")]
    layers += [(str(place), path) for place, path in enumerate(plan.trace.layers) if path in _kept_layers(plan)]
    spans = CustomJSTickFormatter(args={"groups": ["all steps (mean)", *groups]}, code="return groups[tick]")
    return {
        "direction": RadioButtonGroup(
            labels=[DIRECTION_NAMES[way] for way in directions], active=0, name="direction", **wide
        ),
        "region": RadioButtonGroup(labels=[REGION_NAMES[one] for one in regions], active=0, name="region", **wide),
        "time": Slider(title="Time", start=0, end=len(groups), value=0, step=1, format=spans, name="time", **wide),
        "layer": Select(title="Layer", options=layers, value="-1", name="layer", **wide),
        "head": Select(title="Head", options=heads, value="-1", name="head", disabled=not plan.heads_apart, **wide),
        "value": Select(
            title="Values",
            options=[("density", "relative to even (1 = even)"), ("weight", "attention weight")],
            value="density",
            name="value",
            **wide,
        ),
        "scale": RadioButtonGroup(labels=["Own scale", "Fixed scale"], active=0, name="scale", **wide),
        "opacity": Slider(title="Opacity", start=0, end=1, value=0.65, step=0.05, name="opacity", **wide),
        "palette": Select(title="Colours", options=list(PALETTES), value="cividis", name="palette", **wide),
        "follow": Checkbox(label="Follow the pointer", active=False, name="follow", **wide),
        "level": RadioButtonGroup(labels=list(LEVEL_NAMES.values()), active=0, name="level", **wide),
    }


def _kept_layers(plan: ReportPlan) -> set[str]:
    return {path for one in plan.classes for path in one.selected.paths}


def palettes() -> dict[str, list[str]]:
    """Colours of every palette, from low to high."""
    from bokeh import palettes as known

    found = {name: list(getattr(known, label)) for name, label in PALETTES.items()}
    return found | {"grey": found["grey"][::-1]}
