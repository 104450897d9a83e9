"""A trace as xarray finds it: `xarray.open_datatree("run.zarr", engine="attrace")`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint

from attrace.analysis.maps.marginals import marginals
from attrace.analysis.storage.store import open_store
from attrace.analysis.trace.trace import Trace, open_trace
from attrace.analysis.trace.views import class_tree, image_array, stored_tree
from attrace.schemas import AttraceError, InputError
from attrace.schemas.address import is_address
from attrace.schemas.layout import IMAGES


class TraceBackendEntrypoint(BackendEntrypoint):
    """Opens traces with xarray, lazily and labelled.

    The root has the steps. Each class is a group, `reference/4096x257h8d40` for example, of `scores`, the arrays that
    are stored (`query_vector`, `key_vector`, `bias`, `lse`) and the marginals `r2g` and `g2r`; a copy without scores
    has the marginals alone. Each picture is a group below `images`.
    """

    description = "Traces of attrace: the attention of a diffusion model, lazily and labelled"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = (
        "filename_or_obj",
        "drop_variables",
        "group",
        "storage_options",
    )
    supports_groups = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether this is a trace on this machine; one at an address is opened by `engine="attrace"`."""
        if not isinstance(filename_or_obj, str | Path) or is_address(filename_or_obj):
            return False
        try:
            open_store(filename_or_obj)
        except (AttraceError, OSError):
            return False
        return True

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.DataTree:
        """Open a folder, a `.zip` file or an address as a tree; nothing is read but metadata."""
        return xr.DataTree.from_dict(
            self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, storage_options=storage_options)
        )

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> dict[str, xr.Dataset]:
        """Open the groups of a trace by their paths."""
        trace = open_trace(filename_or_obj, storage_options=storage_options)
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return {
            path: dataset.drop_vars(dropped, errors="ignore") for path, dataset in sorted(trace_datasets(trace).items())
        }

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open one group of a trace; without `group` the only class that it has.

        Raises
        ------
        InputError
            If there is no such group, or several classes and none is chosen.
        """
        datasets = self.open_groups_as_dict(
            filename_or_obj, drop_variables=drop_variables, storage_options=storage_options
        )
        classes = [path for path in datasets if path != "/" and not path.startswith(f"/{IMAGES}/")]
        path = f"/{group.strip('/')}" if group is not None else classes[0] if len(classes) == 1 else None
        if path not in datasets:
            listed = ", ".join(one.strip("/") for one in datasets if one != "/")
            raise InputError(f"{filename_or_obj}: expected the group to open, one of {listed}; found {group!r}")
        return datasets[path]


def trace_datasets(trace: Trace) -> dict[str, xr.Dataset]:
    """Everything in a trace, of every context and branch, by path: lazy and labelled."""
    datasets = {"/": class_tree(trace, {}).to_dataset()}
    for part in _contexts_and_branches(trace):
        trees = [marginals(part), *([part.scores, stored_tree(part)] if trace.manifest.has_scores else [])]
        for one in part.classes:
            found = [tree.to_dict()[f"/{one.group}"] for tree in trees]
            variables = {name: values for dataset in found for name, values in dataset.data_vars.items()}
            datasets[f"/{one.group}"] = xr.Dataset(variables, attrs=found[-1].attrs)
    datasets |= {f"/{IMAGES}/{name}": image_array(trace, name).to_dataset() for name in trace.images}
    for dataset in datasets.values():
        for values in dataset.data_vars.values():  # xarray wraps what is lazy: with `chunks={}` it cuts it as it was
            values.encoding["preferred_chunks"] = dict(zip(values.dims, values.chunks or (), strict=True))
    return datasets


def _contexts_and_branches(trace: Trace) -> Iterator[Trace]:
    for context in trace.contexts:
        of_context = trace.sel(context=context)
        for branch in of_context.branches:
            yield of_context.sel(branch=branch)
