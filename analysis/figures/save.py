"""The whole set of figures of a trace, as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrace.analysis.figures.blend import Paint
from attrace.analysis.figures.draw import DOTS_PER_INCH
from attrace.analysis.figures.maps import PICTURE_OF, draw_map, draw_sram
from attrace.analysis.maps.attribution import ulam
from attrace.analysis.maps.i2am import Compat, as_published
from attrace.analysis.maps.levels import compute_together, level_maps, mappable_directions
from attrace.analysis.maps.plans import finest_grid
from attrace.analysis.maps.resampler import Resampler
from attrace.analysis.maps.sram import At, chosen_patches, sram
from attrace.analysis.maps.strongest import strongest_patches
from attrace.analysis.trace.trace import require_trace
from attrace.analysis.trace.weights import coverage
from attrace.schemas import Direction, Level
from attrace.schemas.words import DIRECTIONS, LEVELS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from attrace.analysis.maps.plans import Size
    from attrace.analysis.trace.trace import Trace

FileFormat = Literal["png", "pdf", "svg"]


def save_figures(
    trace: Trace,
    folder: str | Path,
    *,
    levels: Iterable[Level | Literal["sram"]] = (*LEVELS, "sram"),
    directions: Iterable[Direction] | None = None,
    groups: int | None = None,
    size: Size | None = None,
    density: bool = True,
    compat: Compat = None,
    resampler: Resampler = None,
    at: At | None = None,
    paint: Paint | None = None,
    file_format: FileFormat = "png",
    overwrite: bool = False,
) -> list[Path]:
    """Draw every level in every direction, and chosen patches, and write one file each, such as `ulam_r2g.png`.

    R2G lies over the picture `generated` of the trace, with the outline of `mask`, G2R over `reference`; where the
    trace has no such picture, the map is drawn alone. All maps are computed in one go.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    folder
        Where the files go; made where it is not there.
    levels, directions, groups, size
        As for `level_maps`: every direction that has a map by default, and all levels, with `sram` for chosen patches.
    density
        Show attention relative to an even spread, so that layers of different grids compare; else plain weights.
    compat
        `i2am`: the values that the published code draws (`as_published`), of the maps that it computes; without
        `density`.
    resampler
        As for `ulam`, of the `g2r` maps.
    at
        The chosen patches of `sram_g2r`, as for `sram`; by default the patch with the most attention of the other
        direction, inside the mask where there is one. `sram_r2g` always takes that default.
    paint
        Colours, opacity, and whether to interpolate between the cells.
    file_format
        `png`, `pdf` or `svg`.
    overwrite
        Replace files that are there.

    Returns
    -------
    list of Path
        The files, in the order of directions and levels.

    Raises
    ------
    FileExistsError
        If a file is there and is not to be overwritten; before anything is computed.
    InputError
        If a direction that is asked for has no map.
    """
    require_trace(trace)
    folder, levels = Path(folder), list(levels)
    possible = mappable_directions(trace, compat=compat, resampler=resampler)
    wanted = possible if directions is None else tuple(directions)
    maps = level_maps(
        trace,
        levels=[level for level in levels if level != "sram"],
        directions=wanted,
        groups=groups,
        size=size,
        density=density,
        compat=compat,
        resampler=resampler,
    )
    # choosing patches takes a grid on both sides, of the patches themselves to choose among them
    mirrored = wanted if "sram" in levels and len(possible) == len(DIRECTIONS) else ()
    if compat is not None or resampler is not None:
        mirrored = tuple(direction for direction in mirrored if direction == "g2r")
    files = {
        name: folder / f"{name}.{file_format}" for name in [*maps, *(f"sram_{direction}" for direction in mirrored)]
    }
    refuse_to_overwrite(files.values(), overwrite=overwrite)
    pictures = pictures_of(trace)
    folder.mkdir(parents=True, exist_ok=True)
    for name, heat in compute_together(maps).items():
        shown = heat if compat is None else as_published(heat)
        save_figure(draw_over(shown, pictures, paint=paint), files[name])
    for direction in mirrored:
        place = at if at is not None and direction == "g2r" else strongest_place(trace, direction)
        heat = sram(trace, place, direction=direction, size=size, density=density, compat=compat, resampler=resampler)
        shown = heat if compat is None else as_published(heat)
        save_figure(draw_chosen(trace, shown, place, paint=paint), files[f"sram_{direction}"])
    return list(files.values())


def strongest_place(trace: Trace, direction: Direction) -> tuple[int, int]:
    """The pixel to choose for `sram` where none is given: the one that the other direction's map is strongest at."""
    mirror: Direction = "g2r" if direction == "r2g" else "r2g"
    mask = trace.images.get("mask") if mirror == "r2g" else None
    heat = ulam(trace, direction=mirror, queries=None if mask is None else mask.values > 127)
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
    mirror: Direction = "g2r" if direction == "r2g" else "r2g"
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
