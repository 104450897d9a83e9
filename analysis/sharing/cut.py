"""What of a trace is packed: the steps, layers and parts that are kept, and the manifest that says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from attrace.analysis.storage.store import StoredTrace
from attrace.analysis.trace.derived import open_derived
from attrace.analysis.trace.selection import Layers, Numbers, match_layers
from attrace.analysis.trace.trace import trace_of
from attrace.schemas import InputError, Manifest, Omitted, SiteClass, terms_of_use
from attrace.schemas.layout import IMAGES, KEY_STEP

_DATA: Final = ("scores", "query", "key", KEY_STEP, "bias", "lse")
"""Arrays of a class that a copy of the marginals alone does not have."""


@dataclass(frozen=True)
class Cut:
    """What of a trace is kept."""

    steps: tuple[int, ...]
    """Places along the stored `time` dimension."""
    finished: tuple[int, ...]
    """Those of every finished step."""
    layers: Mapping[str, tuple[int, ...]]
    """Places along the stored `layer` dimension, by the group of each class of which there are any."""
    without: frozenset[str]
    """Parts left out."""

    def keeps(self, manifest: Manifest, path: str) -> bool:
        """Whether a group or array is kept."""
        if "images" in self.without and (path == IMAGES or path.startswith(f"{IMAGES}/")):
            return False
        group = group_of(manifest, path)
        if group is None:
            return True
        name = path.removeprefix(f"{group}/")
        return group in self.layers and not ("scores" in self.without and name in _DATA)


def cut_of(stored: StoredTrace, layers: Layers, steps: Numbers, without: frozenset[str], *, only_derived: bool) -> Cut:
    """What of a trace is kept, by the options of `pack`."""
    whole = trace_of(stored)
    chosen = whole if steps is None else whole.sel(time=steps)
    paths = {site.path for one in stored.manifest.classes for site in one.sites}
    kept = paths if layers is None else set(match_layers(layers, sorted(paths), stored.path))
    places = {
        one.group: tuple(layer for layer, site in enumerate(one.sites) if site.path in kept)
        for one in stored.manifest.classes
    }
    cut = Cut(
        chosen.step_places, whole.finished_places, {group: some for group, some in places.items() if some}, without
    )
    if not only_derived:
        return cut
    for one in stored.manifest.classes:
        if one.group in cut.layers and open_derived(stored, one, whole.steps) is None:
            raise InputError(
                f"trace {stored.path}: {one.group} keeps no marginals of its {whole.steps} steps: run attrace "
                "precompute first (what is stored in float64 has none)"
            )
    return replace(cut, without=without | {"scores"})


def manifest_of_copy(manifest: Manifest, cut: Cut, *, licence: str | None, citation: str | None) -> Manifest:
    """The manifest of the copy, which says what it lacks."""
    classes = tuple(_cut_class(one, cut) for one in manifest.classes if one.group in cut.layers)
    changes: dict[str, Any] = {"classes": classes, "steps": len(cut.steps)}
    if "arguments" in cut.without:
        changes["call_arguments"] = {}
    elif "prompts" in cut.without:
        changes["call_arguments"] = {
            name: value for name, value in manifest.call_arguments.items() if not _is_prompt(name, value)
        }
    if manifest.status == "recording":  # what is copied of a trace that was never closed is closed
        changes["status"] = "interrupted"
    changes |= terms_of_use(licence, citation)
    omitted = _omitted(manifest, cut)
    if omitted is not None and omitted != manifest.omitted:
        changes |= {"omitted": omitted, "id": _id_of_copy(omitted, cut)}
    return manifest.replace(**changes)


def _cut_class(one: SiteClass, cut: Cut) -> SiteClass:
    sites = tuple(one.sites[layer] for layer in cut.layers[one.group])
    return one.model_copy(update={"sites": sites, "tokens": None if "prompts" in cut.without else one.tokens})


def _is_prompt(name: str, value: Any) -> bool:
    """Whether a call argument was written by a person; a number such as `num_images_per_prompt` was not."""
    return "prompt" in name and (isinstance(value, bool) or not isinstance(value, int | float))


def _omitted(manifest: Manifest, cut: Cut) -> Omitted | None:
    """What the copy lacks of the trace that everything began with."""
    before = manifest.omitted or Omitted(source=manifest.id)
    sites = sum(len(one.sites) for one in manifest.classes) - sum(map(len, cut.layers.values()))
    after = before.model_copy(
        update={
            "parts": (*before.parts, *sorted(cut.without - set(before.parts))),
            "layers": before.layers + sites,
            "steps": before.steps + len(cut.finished) - len(cut.steps),
        }
    )
    return manifest.omitted if after == before else after


def _id_of_copy(omitted: Omitted, cut: Cut) -> str:
    """An identifier that is the same for the same part of the same trace."""
    described = [omitted.model_dump(mode="json"), cut.steps, sorted(cut.layers.items())]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def group_of(manifest: Manifest, path: str) -> str | None:
    """The group of the class that a path is in or is."""
    return next((one.group for one in manifest.classes if f"{path}/".startswith(f"{one.group}/")), None)
