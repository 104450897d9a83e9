"""Writing maps to a file: NumPy, Zarr or netCDF, with their labels, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    import xarray as xr

MARK: Final = "attrace_maps"
"""Attribute of the root of what is written: only a folder that has it is ever replaced."""

Maps = Mapping[str, "xr.DataArray"]


def write_maps(maps: Maps, path: Path, *, overwrite: bool) -> None:
    """Write computed maps; the suffix of the path says how.

    `.npz` has an array for each map (`ulam_r2g`) and each of its coordinates (`llam_r2g.layer`), and `attributes`, a
    JSON object with the dims and attributes of each map. `.zarr` and `.nc` have a group for each direction.

    Raises
    ------
    click.UsageError
        If the suffix is another one, or a netCDF library with groups is needed and not installed.
    FileExistsError
        If something is there and is not to be overwritten.
    """
    writer = writer_for(path, directions_of(maps))
    if overwrite and path.is_dir() and not is_ours(path):
        raise FileExistsError(f"{path} is a folder that attrace maps did not write: choose another path")
    write_beside(path, lambda partial: writer(maps, partial))


def write_beside(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder beside its place, and move it there once it is whole."""
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    _remove(partial)
    try:
        write(partial)
        _remove(path)
        partial.replace(path)
    finally:
        _remove(partial)


def writer_for(path: Path, directions: Collection[str]) -> Callable[[Maps, Path], None]:
    """The writer that the suffix of a path asks for, if maps of those directions can be written so."""
    writers = {".npz": _write_npz, ".zarr": _write_zarr, ".nc": _write_netcdf}
    if path.suffix not in writers:
        raise click.UsageError(f"{path}: expected a name that ends in {', '.join(writers)}")
    if path.suffix == ".nc" and len(directions) > 1 and not netcdf_has_groups():
        raise click.UsageError(
            f"{path}: netCDF with a group for each direction needs h5netcdf (pip install 'attrace[netcdf]'); choose "
            "one --direction, or write .npz or .zarr"
        )
    return writers[path.suffix]


def directions_of(maps: Iterable[str]) -> list[str]:
    """The directions in names of maps, such as `ulam_r2g`."""
    return list(dict.fromkeys(name.rpartition("_")[2] for name in maps))


def _write_npz(maps: Maps, path: Path) -> None:
    import numpy as np

    arrays: dict[str, Any] = {}
    described = {}
    for name, heat in maps.items():
        arrays[name] = heat.values
        arrays |= {f"{name}.{coordinate}": values.values for coordinate, values in heat.coords.items()}
        described[name] = {"dims": list(heat.dims), "attributes": _json_attributes(heat)}
    arrays["attributes"] = np.array(json.dumps(described, ensure_ascii=False))
    np.savez(path, allow_pickle=False, **arrays)


def _write_zarr(maps: Maps, path: Path) -> None:
    _tree(maps).to_zarr(path, zarr_format=3, consolidated=False)


def _write_netcdf(maps: Maps, path: Path) -> None:
    if netcdf_has_groups():
        _tree(maps).to_netcdf(path)
        return
    (dataset,) = _datasets(maps).values()
    dataset.to_netcdf(path, engine="scipy")


def netcdf_has_groups() -> bool:
    """Whether a library that writes groups is installed."""
    return any(find_spec(library) for library in ("h5netcdf", "netCDF4"))


def _tree(maps: Maps) -> xr.DataTree:
    import xarray as xr

    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={MARK: "1"}), **_datasets(maps)})


def _datasets(maps: Maps) -> dict[str, xr.Dataset]:
    """A dataset for each direction, its maps named by level."""
    import xarray as xr

    return {
        direction: xr.Dataset(
            {
                name.rpartition("_")[0]: with_plain_labels(heat)
                for name, heat in maps.items()
                if name.endswith(f"_{direction}")
            },
            attrs={MARK: "1"},
        )
        for direction in directions_of(maps)
    }


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


def is_ours(folder: Path) -> bool:
    """Whether attrace wrote a folder of maps or statistics, so that it may be replaced."""
    try:
        document = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and MARK in document.get("attributes", {})


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
