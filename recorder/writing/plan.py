"""Which sites share a group of arrays: decided once, after the first step, and carried out by others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from attrace.recorder.labels.keys import Grid, KeyLabels, TokenTexts
from attrace.recorder.writing.encode import SiteShape
from attrace.schemas import Context, Site, SiteClass, class_group

SiteKey = tuple[str, str, Context]
"""Path of a site, branch of guidance, and context: a joint attention call may give several."""


@dataclass(frozen=True)
class SeenSite:
    """A site in one branch, as it was in the first recorded step."""

    path: str
    branch: str
    order: int
    """Place in the order of calls."""
    module: str
    """Class of the module."""
    shape: SiteShape
    labels: KeyLabels
    query_grid: Grid | None

    @property
    def key(self) -> SiteKey:
        """What it is found by."""
        return self.path, self.branch, self.labels.context


@dataclass(frozen=True)
class Place:
    """Where a site's values go."""

    group: str
    layer: int


@dataclass(frozen=True)
class Plan:
    """The groups of a trace; the same for every sample of a batch."""

    groups: Mapping[str, tuple[SeenSite, ...]]
    """The sites of each group, in the order of the layer dimension."""

    @property
    def sites(self) -> tuple[SeenSite, ...]:
        """All sites."""
        return tuple(site for sites in self.groups.values() for site in sites)

    def places(self) -> dict[SiteKey, Place]:
        """Where each site's values go."""
        return {
            site.key: Place(group, layer) for group, sites in self.groups.items() for layer, site in enumerate(sites)
        }

    def estimated_bytes(self, steps: int) -> int:
        """Bytes of one sample's arrays, before compression, if no key and no value changes over the steps."""
        once = sum(site.shape.step_bytes(with_keys=True) + site.shape.output_bytes for site in self.sites)
        return once + (steps - 1) * sum(site.shape.step_bytes(with_keys=False) for site in self.sites)

    def classes(self, tokens: Callable[[str, int], TokenTexts | None]) -> tuple[SiteClass, ...]:
        """The site classes of one sample; `tokens` gives the token texts of a branch with that many text keys."""
        return tuple(_site_class(group, sites, tokens) for group, sites in self.groups.items())


def plan_groups(sites: Iterable[SeenSite]) -> Plan:
    """Group the sites that share context, branch, shape, grids and encoding."""
    alike: dict[object, list[SeenSite]] = {}
    for site in sites:
        shared = (site.labels.context, site.branch, site.shape, site.labels.segments, site.query_grid)
        alike.setdefault(shared, []).append(site)
    groups: dict[str, tuple[SeenSite, ...]] = {}
    for members in alike.values():
        groups[_free_name(members, groups)] = tuple(members)
    return Plan(groups)


def _free_name(members: Iterable[SeenSite], taken: Mapping[str, object]) -> str:
    unnamed = _site_class("self/unnamed", members, lambda *_: None)
    name = usual = class_group(unnamed)
    copies = 1
    while name in taken:
        copies += 1
        name = f"{usual}-{copies}"
    return name


def _site_class(group: str, sites: Iterable[SeenSite], tokens: Callable[[str, int], TokenTexts | None]) -> SiteClass:
    sites = tuple(sites)
    first, shape, labels = sites[0], sites[0].shape, sites[0].labels
    texts = tokens(first.branch, shape.keys) if labels.context == "text" else None
    return SiteClass(
        group=group,
        context=labels.context,
        branch=first.branch,
        encoding=shape.encoding,
        dtype=shape.dtype,
        heads=shape.heads,
        queries=shape.queries,
        keys=shape.keys,
        features=shape.features,
        channels=shape.channels,
        scale=shape.scale,
        query_grid=first.query_grid,
        key_segments=texts.segments if texts is not None else labels.segments,
        tokens=texts.texts if texts is not None else None,
        has_bias=shape.has_bias,
        has_lse=shape.has_lse,
        sites=tuple(Site(path=site.path, order=site.order, module=site.module) for site in sites),
    )
