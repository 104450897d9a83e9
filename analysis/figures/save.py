"""The whole set of figures of a trace, as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from attrace.analysis.figures.blend import Paint
from attrace.analysis.figures.draw import DOTS_PER_INCH
from attrace.analysis.figures.maps import PICTURE_OF, draw_map, draw_sram
from attrace.analysis.maps.attribution import MapOptions, level_maps, mappable_directions, ulam
from attrace.analysis.maps.masks import coverage, trace_mask
from attrace.analysis.maps.plan import finest_grid
from attrace.analysis.maps.sram import At, chosen_patches, opposite, sram, strongest_patches
from attrace.analysis.trace.trace import require_trace
from attrace.schemas import Direction, Level
from attrace.schemas.words import DIRECTIONS, LEVELS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from attrace.analysis.trace.trace import Trace

FileFormat = Literal["png", "pdf", "svg"]


def save_figures(
    trace: Trace,
    folder: str | Path,
    *,
    levels: Iterable[Level | Literal["sram"]] = (*LEVELS, "sram"),
    directions: Iterable[Direction] | None = None,
    groups: int | None = None,
    at: At | None = None,
    paint: Paint | None = None,
    file_format: FileFormat = "png",
    overwrite: bool = False,
    **options: Unpack[MapOptions],
) -> list[Path]:
    """Draw every level in every direction, and chosen patches, and write one file each, such as `ulam_r2g.png`.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    folder
        Where the files go; made where it is not there.
    levels, directions, groups
        As for `level_maps`: every direction that has a map by default, and all levels, with `sram` for chosen patches.
    at
        The chosen patches of `sram_g2r`, as for `sram`; by default the patch with the most attention of the other
        direction, inside the mask where there is one. `sram_r2g` always takes that default.
    paint, file_format, overwrite
        As for `save_maps`.
    **options
        `size`, `layers`, `density`, `resampler`, `weights` and `contribution` as for `attribution_map`.

    Returns
    -------
    list of Path
        The files, in the order of directions and levels.

    Raises
    ------
    FileExistsError
        If a file is there and is not to be overwritten.
    InputError
        If a direction that is asked for has no map.
    """
    require_trace(trace)
    levels, resampler = list(levels), options.get("resampler")
    possible = mappable_directions(trace, resampler=resampler)
    wanted = possible if directions is None else tuple(directions)
    maps = level_maps(
        trace, levels=[one for one in levels if one != "sram"], directions=wanted, groups=groups, **options
    )
    chosen: dict[Direction, At] = {}
    # choosing patches takes a grid on both sides, of the patches themselves to choose among them
    if "sram" in levels and len(possible) == len(DIRECTIONS):
        for direction in wanted if resampler is None else tuple(one for one in wanted if one == "g2r"):
            chosen[direction] = at if at is not None and direction == "g2r" else strongest_place(trace, direction)
            maps[f"{direction}/sram"] = sram(trace, chosen[direction], direction=direction, **options)
    return save_maps(trace, maps, folder, chosen=chosen, paint=paint, file_format=file_format, overwrite=overwrite)


def save_maps(
    trace: Trace,
    maps: xr.DataTree,
    folder: str | Path,
    *,
    chosen: Mapping[Direction, At] | None = None,
    paint: Paint | None = None,
    file_format: FileFormat = "png",
    overwrite: bool = False,
) -> list[Path]:
    """Draw maps of a trace over its pictures and write one file each, named by level and direction.

    R2G lies over the picture `generated` of the trace, with the outline of `mask`, G2R over `reference`; where the
    trace has no such picture, the map is drawn alone.

    Parameters
    ----------
    trace
        Whose pictures are below the maps.
    maps
        A child for each direction, whose variables are named by level, as `level_maps` gives them; `sram` is the map
        of chosen patches. Lazy maps are computed in one go.
    folder
        Where the files go; made where it is not there.
    chosen
        The patches of each `sram`, to be marked on the other picture.
    paint
        Colours, opacity, and whether to interpolate between the cells.
    file_format
        `png`, `pdf` or `svg`.
    overwrite
        Replace files that are there.

    Raises
    ------
    FileExistsError
        If a file is there and is not to be overwritten; before anything is computed.
    """
    names = [(direction, str(level)) for direction, node in maps.children.items() for level in node.data_vars]
    names.sort(key=lambda one: one[1] == "sram")
    files = {one: Path(folder, f"{one[1]}_{one[0]}.{file_format}") for one in names}
    refuse_to_overwrite(files.values(), overwrite=overwrite)
    Path(folder).mkdir(parents=True, exist_ok=True)
    pictures, computed = pictures_of(trace), maps.compute()
    for (direction, level), file in files.items():
        heat = computed[direction].data_vars[level]
        if level == "sram":
            save_figure(draw_chosen(trace, heat, (chosen or {})[heat.attrs["direction"]], paint=paint), file)
        else:
            save_figure(draw_over(heat, pictures, paint=paint), file)
    return list(files.values())


def strongest_place(trace: Trace, direction: Direction) -> tuple[int, int]:
    """The pixel to choose for `sram` where none is given: the one that the other direction's map is strongest at."""
    mirror = opposite(direction)
    heat = ulam(trace, direction=mirror, queries=trace_mask(trace) if mirror == "r2g" else None)
    return strongest_patches(trace, heat)[0].pixel


def draw_over(heat: xr.DataArray, pictures: Mapping[str, Any], *, paint: Paint | None = None) -> Figure:
    """Draw a map over the picture of its direction, where there is one, with the outline of the mask for R2G."""
    direction = str(heat.attrs.get("direction"))
    mask = pictures.get("mask") if direction == "r2g" else None
    return draw_map(heat, pictures.get(PICTURE_OF.get(direction, "")), mask=mask, paint=paint)


def draw_chosen(trace: Trace, heat: xr.DataArray, at: At, *, paint: Paint | None = None) -> Figure:
    """Draw the map of chosen patches (`sram`) over the picture of its direction, and mark them on the other one.

    What is marked are the patches of the finest grid that the choice touches: the least that the model can tell apart.
    """
    direction: Direction = "r2g" if heat.attrs.get("direction") == "r2g" else "g2r"
    mirror = opposite(direction)
    pictures = pictures_of(trace)
    chosen = coverage(chosen_patches(trace, at, direction), finest_grid(trace, mirror)) > 0
    return draw_sram(
        heat,
        chosen,
        marked_picture=pictures.get(PICTURE_OF[mirror]),
        picture=pictures.get(PICTURE_OF[direction]),
        paint=paint,
    )


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure in the format of the file's suffix; PDF and SVG without a date, so that equal ones are equal."""
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(file.suffix)
    figure.savefig(file, dpi=DOTS_PER_INCH, metadata=metadata)


def pictures_of(trace: Trace) -> dict[str, Any]:
    """The pictures of a trace, read; `reference` is the one looked at, where the keys hold several."""
    named = {name: name for name in trace.images} | {"reference": trace.reference_name}
    return {name: trace.images[stored].values for name, stored in named.items() if stored in trace.images}


def refuse_to_overwrite(files: Iterable[Path], *, overwrite: bool) -> None:
    """Raise FileExistsError if one of the files is there and is not to be overwritten."""
    there = [str(file) for file in files if file.exists()]
    if there and not overwrite:
        listed = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
        raise FileExistsError(f"{listed} there already: choose another folder, or pass overwrite=True (--overwrite)")
