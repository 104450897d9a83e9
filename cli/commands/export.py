"""`attrace export`: maps and marginals as netCDF or NumPy, for tools that read no Zarr."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.destination import Destination
from attrace.cli.shared.map_files import netcdf_has_groups, with_plain_labels
from attrace.cli.shared.options import (
    examples,
    json_option,
    overwrite_option,
    select,
    selection_options,
    trace_argument,
)
from attrace.cli.shared.output import bytes_text, dask_progress, print_json, say, show

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis import Trace


@click.command(
    epilog=examples(
        "attrace export run.zarr -o run.npz",
        'attrace export run.zarr -o early.npz --steps 0:4 --layers "up_blocks.*" --scores',
    )
)
@trace_argument
@click.option("-o", "--output", metavar="PATH", required=True, help="A .nc or .npz file to write; may be an address.")
@click.option("--scores", is_flag=True, help="Every score too: mind the size, which is told first.")
@selection_options
@overwrite_option
@json_option
def export(trace: str, output: str, scores: bool, overwrite: bool, as_json: bool, **selection: Any) -> None:
    """Write maps and marginals as netCDF or NumPy.

    Groups: maps/r2g and maps/g2r with every level, and for each class its marginals r2g and g2r. A .npz file names each
    array by its group, such as maps/r2g/ulam, holds coordinates beside it, and has the dims and attributes in a JSON
    text named attributes; nothing in it is pickled. A .nc file is netCDF4 and needs h5netcdf or netCDF4.
    """
    target = Destination(output)
    if target.suffix not in (".nc", ".npz"):
        raise click.UsageError(f"{output}: expected a name that ends in .nc or .npz")
    if target.suffix == ".nc" and not netcdf_has_groups():
        raise click.UsageError(f"{output}: netCDF4 needs h5netcdf (pip install 'attrace[netcdf]'); or write .npz")
    target.check(overwrite=overwrite)
    datasets = _datasets(select(trace, **selection), scores=scores)
    size = sum(values.nbytes for dataset in datasets.values() for values in dataset.data_vars.values())
    if scores:
        say(f"warning: with every score this takes {bytes_text(size)} before compression")
    with dask_progress():
        target.write(lambda path: (_write_netcdf if target.suffix == ".nc" else _write_npz)(datasets, path))
    if as_json:
        print_json({"output": output, "groups": {path: list(one.data_vars) for path, one in datasets.items()}})
    else:
        show(output)


def _datasets(trace: Trace, *, scores: bool) -> dict[str, xr.Dataset]:
    """What is written, by group, lazily."""
    import xarray as xr

    from attrace.analysis import level_maps, marginals

    datasets: dict[str, xr.Dataset] = {}
    for direction, node in level_maps(trace).children.items():
        levels = {level: with_plain_labels(heat) for level, heat in node.data_vars.items()}
        datasets[f"maps/{direction}"] = xr.Dataset(levels)
    trees = [marginals(trace), *([trace.scores] if scores else [])]
    for one in trace.classes:
        found = [tree.to_dict()[f"/{one.group}"] for tree in trees]
        variables = {str(name): with_plain_labels(values) for part in found for name, values in part.data_vars.items()}
        datasets[one.group] = xr.Dataset(variables, attrs=found[-1].attrs)
    return datasets


def _write_netcdf(datasets: dict[str, xr.Dataset], path: Path) -> None:
    import xarray as xr

    compressed = {
        f"/{group}": {str(name): {"zlib": True, "complevel": 1} for name in dataset.data_vars}
        for group, dataset in datasets.items()
    }
    xr.DataTree.from_dict(datasets).to_netcdf(path, encoding=compressed)


def _write_npz(datasets: dict[str, xr.Dataset], path: Path) -> None:
    """Write one array after another, so that only one is in memory."""
    import numpy as np

    described = {
        f"{group}/{name}": {"dims": list(values.dims), "attributes": values.attrs}
        for group, dataset in datasets.items()
        for name, values in dataset.variables.items()
    }
    with zipfile.ZipFile(path, "w") as archive:

        def write(name: str, array: Any) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)

        for group, dataset in datasets.items():
            for name, values in dataset.variables.items():
                array = values.values
                write(f"{group}/{name}", array.astype(np.str_) if array.dtype == object else array)
        write("attributes", np.array(json.dumps(described, ensure_ascii=False)))
