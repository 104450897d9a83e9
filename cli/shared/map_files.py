"""Writing maps to a file: NumPy, Zarr or netCDF, with their labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.destination import MARK, Destination

if TYPE_CHECKING:
    import xarray as xr


def writer_for(target: Destination, directions: Collection[str]) -> Callable[[xr.DataTree, Path], None]:
    """What writes a tree of maps of those directions as the suffix of a destination says.

    `.npz` has an array for each map (`ulam_r2g`) and each of its coordinates (`llam_r2g.layer`), and `attributes`, a
    JSON object with the dims and attributes of each map. `.zarr` and `.nc` have a group for each direction.

    Raises
    ------
    click.UsageError
        If the suffix is another one, or a netCDF library with groups is needed and not installed.
    """
    writers = {".npz": _write_npz, ".zarr": _write_zarr, ".nc": _write_netcdf}
    if target.suffix not in writers:
        raise click.UsageError(f"{target}: expected a name that ends in {', '.join(writers)}")
    if target.suffix == ".nc" and len(directions) > 1 and not netcdf_has_groups():
        raise click.UsageError(
            f"{target}: netCDF with a group for each direction needs h5netcdf (pip install 'attrace[netcdf]'); choose "
            "one --direction, or write .npz or .zarr"
        )
    return writers[target.suffix]


def named_maps(maps: xr.DataTree) -> Iterator[tuple[str, xr.DataArray]]:
    """Each map of a tree with its name in files and tables, such as `ulam_r2g`."""
    for direction, node in maps.children.items():
        for level, heat in node.data_vars.items():
            yield f"{level}_{direction}", heat


def _write_npz(maps: xr.DataTree, path: Path) -> None:
    import numpy as np

    arrays: dict[str, Any] = {}
    described = {}
    for name, heat in named_maps(maps):
        arrays[name] = heat.values
        arrays |= {f"{name}.{coordinate}": values.values for coordinate, values in heat.coords.items()}
        described[name] = {"dims": list(heat.dims), "attributes": _json_attributes(heat)}
    arrays["attributes"] = np.array(json.dumps(described, ensure_ascii=False))
    np.savez(path, allow_pickle=False, **arrays)


def _write_zarr(maps: xr.DataTree, path: Path) -> None:
    _plain(maps).to_zarr(path, zarr_format=3, consolidated=False)


def _write_netcdf(maps: xr.DataTree, path: Path) -> None:
    if netcdf_has_groups():
        _plain(maps).to_netcdf(path)
        return
    (node,) = _plain(maps).children.values()
    node.to_dataset().to_netcdf(path, engine="scipy")


def netcdf_has_groups() -> bool:
    """Whether a library that writes groups is installed."""
    return any(find_spec(library) for library in ("h5netcdf", "netCDF4"))


def _plain(maps: xr.DataTree) -> xr.DataTree:
    """The tree as every format can hold it, marked as ours."""
    import xarray as xr

    groups = {
        direction: xr.Dataset({level: with_plain_labels(heat) for level, heat in node.data_vars.items()})
        for direction, node in maps.children.items()
    }
    marked = {path: group.assign_attrs({MARK: "1"}) for path, group in {"/": xr.Dataset(), **groups}.items()}
    return xr.DataTree.from_dict(marked)


def with_plain_labels(heat: xr.DataArray) -> xr.DataArray:
    """A map whose attributes and text coordinates every format can hold; Zarr has no type for fixed-length text."""
    texts = {name: values.astype(object) for name, values in heat.coords.items() if values.dtype.kind == "U"}
    return heat.assign_coords(texts).assign_attrs(_json_attributes(heat))


def _json_attributes(heat: xr.DataArray) -> dict[str, Any]:
    """Attributes as plain text and numbers."""
    return {
        name: value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)
        for name, value in heat.attrs.items()
    }
