"""Segments of the keys of a site class: where each stands among all keys, and the pictures that they hold."""

from __future__ import annotations

from attrace.schemas import InputError, KeySegment, SiteClass


def key_slices(site_class: SiteClass) -> list[tuple[slice, KeySegment]]:
    """The key segments of a class, each with its slice of all keys."""
    slices, start = [], 0
    for segment in site_class.key_segments:
        slices.append((slice(start, start + segment.count), segment))
        start += segment.count
    return slices


def picture_keys(site_class: SiteClass) -> tuple[slice, tuple[int, int]] | None:
    """Slice of the keys that lie on a grid over the reference, and the grid; None if none do.

    Raises
    ------
    InputError
        If there are several such grids.
    """
    found = [(keys, segment.grid) for keys, segment in key_slices(site_class) if segment.grid is not None]
    if len(found) > 1:
        grids = " and ".join(f"{rows} x {columns}" for _, (rows, columns) in found)
        raise InputError(
            f"{site_class.group}: the keys hold {len(found)} pictures ({grids}), of which a map shows one: choose it "
            "with trace.sel(picture=0) (--picture 0)"
        )
    return found[0] if found else None


def pictures_in(site_class: SiteClass) -> int:
    """How many pictures the keys of a class hold: grids of patches."""
    return sum(segment.grid is not None for segment in site_class.key_segments)


def of_one_picture(site_class: SiteClass, number: int) -> SiteClass:
    """A class as if only one of the pictures in its keys were a picture: the patches of others are `other` keys."""
    pictures = [index for index, segment in enumerate(site_class.key_segments) if segment.grid is not None]
    others = set(pictures) - {pictures[number]}
    segments = tuple(
        KeySegment(kind="other", count=segment.count) if index in others else segment
        for index, segment in enumerate(site_class.key_segments)
    )
    return site_class.model_copy(update={"key_segments": segments})
