"""The maps of several levels and directions at once, computed in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrace.analysis.maps.attribution import MapOptions, hlam, llam, planned, tlam, ulam
from attrace.analysis.maps.i2am import Compat
from attrace.analysis.maps.plans import Size
from attrace.analysis.maps.resampler import Resampler
from attrace.schemas import Direction, InputError, Level
from attrace.schemas.words import DIRECTIONS, LEVELS

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis.trace.trace import Trace

MAKERS: Final[Mapping[Level, Callable[..., xr.DataArray]]] = {"ulam": ulam, "tlam": tlam, "hlam": hlam, "llam": llam}
"""What makes the map of each level."""


def mappable_directions(trace: Trace, *, compat: Compat = None, resampler: Resampler = None) -> tuple[Direction, ...]:
    """The directions that have a map; a reference that is one vector has no map over it.

    Raises
    ------
    InputError
        If there is none, with the reason for both.
    """
    found: list[Direction] = []
    reasons = []
    for direction in DIRECTIONS:
        try:
            planned(trace, "ulam", direction, _options_of(direction, compat, resampler))
        except InputError as error:
            reasons.append(str(error))
        else:
            found.append(direction)
    if not found:
        raise InputError("; ".join(dict.fromkeys(reasons)))
    return tuple(found)


def level_maps(
    trace: Trace,
    *,
    levels: Iterable[Level] = LEVELS,
    directions: Iterable[Direction] | None = None,
    groups: int | None = None,
    size: Size | None = None,
    density: bool = False,
    compat: Compat = None,
    resampler: Resampler = None,
) -> dict[str, xr.DataArray]:
    """Maps by name, such as `ulam_r2g`, lazily.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    levels
        All by default.
    directions
        Those that have a map by default.
    groups
        Groups of steps of the time-level maps.
    size, density, compat
        As for `ulam`.
    resampler
        As for `ulam`, of the `g2r` maps.

    Raises
    ------
    InputError
        If a direction has no map.
    """
    chosen = tuple(levels)
    shared: dict[str, Any] = {"size": size, "density": density, "compat": compat}
    maps = {}
    if directions is None:
        directions = mappable_directions(trace, compat=compat, resampler=resampler)
    for direction in directions:
        for level in chosen:
            options = shared | ({"groups": groups} if level == "tlam" else {})
            options |= {"resampler": resampler} if direction == "g2r" else {}
            maps[f"{level}_{direction}"] = MAKERS[level](trace, direction=direction, **options)
    return maps


def _options_of(direction: Direction, compat: Compat, resampler: Resampler) -> MapOptions:
    """A resampler lays maps over the reference alone."""
    return MapOptions(compat=compat, resampler=resampler if direction == "g2r" else None)


def compute_together(maps: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    """Compute lazy maps in one go, so that what they share is read once."""
    import dask.base

    return dict(zip(maps, dask.base.compute(*maps.values()), strict=True))
