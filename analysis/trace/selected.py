"""Selections of a trace by label: steps, layers, heads, context, branch, picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.storage.store import StoredTrace
from attrace.analysis.trace.key_segments import of_one_picture, pictures_in
from attrace.analysis.trace.selection import Layers, Numbers, match_layers, pick_numbers, require_label
from attrace.schemas import Manifest, SelectionError, SiteClass, Status
from attrace.schemas.layout import IMAGES, reference_name
from attrace.schemas.words import CONTEXT_PREFERENCE


@dataclass(frozen=True)
class SelectedClass:
    """The part of a site class that is selected."""

    site_class: SiteClass
    layers: tuple[int, ...]
    """Indices along the stored `layer` dimension."""
    heads: tuple[int, ...]
    """Indices along the stored `head` dimension."""
    shows_one_picture: bool = False
    """Whether one of several pictures in the keys is chosen: `site_class` then has fewer patches than are stored."""

    @property
    def group(self) -> str:
        """Path of the class in the store."""
        return self.site_class.group

    @property
    def paths(self) -> tuple[str, ...]:
        """Module paths of the selected layers."""
        return tuple(self.site_class.sites[layer].path for layer in self.layers)


@dataclass(frozen=True, eq=False, repr=False)
class TraceSelection:
    """Metadata of a trace, and the part of it that is selected; `Trace` adds the arrays and the methods."""

    stored: StoredTrace
    """Its store."""
    calls: NDArray[np.int32]
    """Call number of every step in the store, finished or not."""
    timestep_values: NDArray[np.float32]
    """Timestep of every step in the store."""
    finished_steps: tuple[int, ...]
    """Indices of the finished steps along the stored `time` dimension."""
    selected_steps: tuple[int, ...]
    """Indices of the selected, finished steps along the stored `time` dimension."""
    context: str | None
    """The selected context; None for a trace without sites."""
    branch: str | None
    """The selected branch."""
    selected_paths: frozenset[str] | None = None
    """Module paths of the selected layers; None for all."""
    selected_heads: frozenset[int] | None = None
    """Numbers of the selected heads; None for all."""
    picture: int | None = None
    """The selected picture, where the keys hold several; None for all of them."""
    narrowed: bool = False
    """Whether a context or branch was selected other than by default."""

    @property
    def path(self) -> str:
        """Path or address of the trace."""
        return self.stored.path

    @property
    def manifest(self) -> Manifest:
        """Everything in the trace that is not an array."""
        return self.stored.manifest

    @property
    def status(self) -> Status:
        """Status in the manifest; a recorder that was killed leaves `recording`."""
        return self.manifest.status

    @property
    def interrupted(self) -> bool:
        """Whether the run was not recorded to its end: it failed, was killed, or is still under way."""
        return self.status != "complete"

    @property
    def steps(self) -> int:
        """Number of selected steps, all of them finished."""
        return len(self.selected_steps)

    @property
    def time(self) -> NDArray[np.int32]:
        """Call numbers of the selected steps: int32 (time)."""
        return self.calls[list(self.selected_steps)]

    @property
    def timesteps(self) -> NDArray[np.float32]:
        """Timesteps that the denoiser was called with in the selected steps: float32 (time)."""
        return self.timestep_values[list(self.selected_steps)]

    @property
    def contexts(self) -> tuple[str, ...]:
        """Contexts in the trace; `sel(context=...)` selects another one."""
        present = {site_class.context for site_class in self.manifest.classes}
        return tuple(context for context in CONTEXT_PREFERENCE if context in present)

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches of classifier-free guidance recorded for this context; `sel(branch=...)` selects another one."""
        return branches_of(self.manifest, self.context)

    @cached_property
    def classes(self) -> tuple[SelectedClass, ...]:
        """The selected site classes of this context and branch, each with its selected layers and heads."""
        selected = (self._selected(one) for one in self._classes_of_context())
        return tuple(one for one in selected if one.layers and one.heads)

    @property
    def layers(self) -> tuple[str, ...]:
        """Module paths of the selected layers, in the order of their calls."""
        sites = [one.site_class.sites[layer] for one in self.classes for layer in one.layers]
        return tuple(site.path for site in sorted(sites, key=lambda site: site.order))

    @property
    def heads(self) -> tuple[int, ...]:
        """Numbers of the heads that any selected layer has."""
        return tuple(sorted({head for one in self.classes for head in one.heads}))

    @property
    def pictures(self) -> int:
        """Largest number of pictures in the keys of a layer: references that the model attends to at once."""
        return max(map(pictures_in, self._classes_of_context()), default=0)

    @property
    def reference_name(self) -> str:
        """Name in `images` of the picture that the keys are patches of: `reference`, then `reference-1` and so on."""
        return reference_name(self.picture or 0)

    @property
    def image_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Length of each picture along row, column and channel, by name."""
        return {name: self.stored.array(f"{IMAGES}/{name}").shape for name in self.stored.image_names}

    def sel(
        self,
        *,
        layer: Layers = None,
        time: Numbers = None,
        head: Numbers = None,
        context: str | None = None,
        branch: str | None = None,
        picture: int | None = None,
    ) -> Self:
        """Select by label; selections compose, and nothing is read.

        Parameters
        ----------
        layer
            Module paths, globs such as `up_blocks.*`, or the short labels that figures show, such as `up_blocks.1.1.0`.
        time
            Call numbers: one, several, or a slice with both ends included, as xarray slices labels.
        head
            Head numbers, in the same ways. A layer that has none of them drops out.
        context
            Another context: `reference`, `text`, `image-prompt` or `self`.
        branch
            Another branch of classifier-free guidance.
        picture
            One of several pictures in the keys, counted from 0. Only its patches then count as patches, and layers
            without it drop out. Softmaxes still run over all keys. Select the context first.

        Raises
        ------
        SelectionError
            If a label names nothing in what is selected so far.
        """
        trace = self if context is None else self._with_context(context)
        trace = trace if branch is None else trace._with_branch(branch)
        if picture is not None:
            require_label(picture, range(trace.pictures), "picture", trace.path)
            trace = trace._checked(replace(trace, picture=picture))
        if layer is not None:
            trace = replace(trace, selected_paths=frozenset(match_layers(layer, trace.layers, trace.path)))
        if head is not None:
            heads = pick_numbers(head, trace.heads, "head", trace.path)
            trace = replace(trace, selected_heads=frozenset(heads))
        if time is not None:
            picked = set(pick_numbers(time, tuple(trace.time.tolist()), "time", trace.path))
            trace = replace(
                trace, selected_steps=tuple(step for step in trace.selected_steps if self.calls[step] in picked)
            )
        return trace

    def __dask_tokenize__(self) -> Any:
        """What identifies the selected data: the recording and the selection, not the values."""
        return (
            "attrace.Trace",
            self.path,
            self.manifest.id,
            self.selected_steps,
            self.context,
            self.branch,
            sorted(self.selected_paths) if self.selected_paths is not None else None,
            sorted(self.selected_heads) if self.selected_heads is not None else None,
            self.picture,
        )

    def _with_context(self, context: str) -> Self:
        require_label(context, self.contexts, "context", self.path)
        branches = branches_of(self.manifest, context)
        branch = self.branch if self.branch in branches else branches[0]
        picture = self.picture if context == self.context else None
        return self._checked(replace(self, context=context, branch=branch, picture=picture, narrowed=True))

    def _with_branch(self, branch: str) -> Self:
        require_label(branch, self.branches, "branch", self.path)
        return self._checked(replace(self, branch=branch, narrowed=True))

    def _checked(self, trace: Self) -> Self:
        if not trace.classes:
            raise SelectionError(
                f"trace {self.path}: context {trace.context!r}, branch {trace.branch!r} has none of the layers and "
                "heads selected before: select the context first"
            )
        return trace

    def _classes_of_context(self) -> list[SiteClass]:
        """Site classes of the selected context and branch that hold the selected picture."""
        least = 0 if self.picture is None else self.picture + 1
        found = [one for one in self.manifest.classes if (one.context, one.branch) == (self.context, self.branch)]
        return [one for one in found if pictures_in(one) >= least]

    def _selected(self, site_class: SiteClass) -> SelectedClass:
        shown = site_class if self.picture is None else of_one_picture(site_class, self.picture)
        return SelectedClass(
            shown,
            self._layers_of(site_class),
            self._heads_of(site_class),
            shown.key_segments != site_class.key_segments,
        )

    def _layers_of(self, site_class: SiteClass) -> tuple[int, ...]:
        paths = self.selected_paths
        return tuple(i for i, site in enumerate(site_class.sites) if paths is None or site.path in paths)

    def _heads_of(self, site_class: SiteClass) -> tuple[int, ...]:
        heads = self.selected_heads
        return tuple(head for head in range(site_class.heads) if heads is None or head in heads)


def branches_of(manifest: Manifest, context: str | None) -> tuple[str, ...]:
    """Branches recorded for a context, `conditional` first."""
    found = dict.fromkeys(one.branch for one in manifest.classes if one.context == context)
    return tuple(sorted(found, key=lambda branch: branch != "conditional"))
