"""Keeping beside a trace what its maps take: marginals, so that they are not computed again, and measured effects."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dask.array as da
import xarray as xr
import zarr
import zarr.codecs
import zarr.storage
from zarr.core.sync import sync

from attrace.analysis.kernels.softmaxes import require_device
from attrace.analysis.maps.marginals import all_marginals
from attrace.analysis.maps.weights import read_weights
from attrace.analysis.storage.address import require_folder_here
from attrace.analysis.storage.files import LocalFiles
from attrace.analysis.storage.metadata import copies_in, own_documents, read_document, seal
from attrace.analysis.storage.store import format_errors, reopen
from attrace.analysis.trace.derived import open_derived
from attrace.analysis.trace.source import require_scores
from attrace.analysis.trace.trace import Trace, open_trace, trace_of
from attrace.schemas import InputError, SiteClass, derived_arrays, effect_array
from attrace.schemas.digest import DOCUMENT, Documents
from attrace.schemas.durable import sync_tree
from attrace.schemas.layout import DERIVED, DERIVED_STEPS, DERIVED_STEPS_PER_CHUNK, EFFECT


def precompute(trace: Trace | str | Path, *, overwrite: bool = False, device: str | None = None) -> Trace:
    """Compute the marginals of every class of a trace in one pass and keep them in its store.

    Every context, branch, layer, head and finished step is taken, whatever is selected. Maps with the default queries
    and keys then read them. A class stored in float64 is left out, as what is kept is float32.

    Parameters
    ----------
    trace
        The trace, or where it lies: a folder, or a store of Zarr that can be written.
    overwrite
        Compute also what is there and up to date, and not only what is missing or covers other steps.
    device
        Compute with torch, as in `marginals`.

    Returns
    -------
    Trace
        The trace, opened anew, with nothing selected.

    Raises
    ------
    InputError
        If the store cannot be written: a `.zip`, or one at an address; if the trace is a copy without scores; or if
        there is no such device.
    ImportError
        If a device is given and torch is not installed.

    Notes
    -----
    What is kept counts once the number of steps is written beside it, after everything else: a run that is cut off
    leaves a trace that computes its maps as before. A recording that goes on makes it out of date.
    """
    require_device(device)
    whole = trace_of(reopen((open_trace(trace) if isinstance(trace, str | Path) else trace).stored))
    wanted = [
        one
        for one in whole.manifest.classes
        if one.dtype != "float64" and (overwrite or open_derived(whole.stored, one, whole.steps) is None)
    ]
    if not wanted or whole.steps == 0:
        return whole
    require_scores(whole.stored)
    require_folder_here(whole.path, "precompute")
    root = _writable_root(whole)
    with _metadata_errors(whole):
        copies = copies_in(read_document(root.store))
        for one in wanted:
            root[one.group]  # refuses metadata that is damaged, before anything is written
        _withdraw(whole, root, wanted, copies)
    _write_marginals(whole, root, wanted, device)
    with _metadata_errors(whole):
        _announce(whole, root, wanted, copies)
    return trace_of(reopen(whole.stored))


def keep_effects(trace: Trace | str | Path, effects: xr.DataArray) -> Trace:
    """Keep measured effects of layers or heads in the store of a trace, in place of those that it holds.

    Parameters
    ----------
    trace
        The trace, or where it lies: a folder, or a store of Zarr that can be written.
    effects
        Effects (layer[, head]) by module path, as `attrace.effects(changes).effect` has them; the attribute `context`
        says which classes they are of, all where there is none.

    Returns
    -------
    Trace
        The trace, opened anew, with nothing selected; its maps take the effects with `weights="effect"`.

    Raises
    ------
    InputError
        If the store cannot be written, the effects are none, or of no layer of the trace.
    """
    whole = trace_of(reopen((open_trace(trace) if isinstance(trace, str | Path) else trace).stored))
    given = read_weights(effects)
    if not isinstance(given, xr.DataArray):
        raise InputError("effects: expected a DataArray (layer[, head]), as attrace.effects makes it")
    context = given.attrs.get("context")
    values = {
        one: given.reindex(layer=[site.path for site in one.sites])
        for one in whole.manifest.classes
        if context in (None, one.context) and any(site.path in given["layer"] for site in one.sites)
    }
    if not values:
        raise InputError(f"trace {whole.path} has none of the layers {', '.join(map(str, given['layer'].values))}")
    require_folder_here(whole.path, "ablate --into")
    root = _writable_root(whole)
    copies = copies_in(read_document(root.store))
    paths = [f"{one.group}/{EFFECT}" for one in values]
    if copies is not None:
        seal(root.store, _outside(copies, paths), major=whole.manifest.major)
    for one, of_class in values.items():
        by_head = "head" in of_class.dims
        of_class = of_class.reindex(head=range(one.heads)) if by_head else of_class
        spec = effect_array(one, by_head=by_head)
        array = root.create_array(
            **spec.creation | {"name": f"{one.group}/{EFFECT}"}, compressors=[zarr.codecs.Crc32cCodec()], overwrite=True
        )
        array[...] = of_class.values
    if copies is not None:
        members = dict(_outside(copies, paths))
        for path in paths:
            members[path] = read_document(root.store, path)
        seal(root.store, members, major=whole.manifest.major)
    return trace_of(reopen(whole.stored))


def _writable_root(trace: Trace) -> zarr.Group:
    store = trace.stored.root.store
    try:
        return zarr.open_group(store.with_read_only(False), mode="r+", use_consolidated=False)
    except (NotImplementedError, ValueError, PermissionError) as error:
        raise InputError(f"{trace.path} cannot be written ({error}): copy it to a folder first") from error


def _metadata_errors(trace: Trace) -> AbstractContextManager[None]:
    return format_errors(f"trace {trace.path}: metadata around its marginals cannot be read (attrace verify names it)")


def _withdraw(trace: Trace, root: zarr.Group, site_classes: Sequence[SiteClass], copies: Documents | None) -> None:
    """Take back that the old marginals count, also in the copies of the metadata, before any of them changes."""
    caches = [f"{site_class.group}/{DERIVED}" for site_class in site_classes]
    for path in caches:
        sync(root.store.delete(f"{path}/{DOCUMENT}"))  # whatever it holds: it may be damaged
    if copies is not None:
        seal(root.store, _outside(copies, caches), major=trace.manifest.major)
    for path in caches:
        sync(root.store.delete_dir(path))


def _outside(documents: Documents, groups: Sequence[str]) -> Documents:
    """The documents of what lies in none of some groups."""
    return {
        path: document
        for path, document in documents.items()
        if not any(f"{path}/".startswith(f"{group}/") for group in groups)
    }


def _write_marginals(trace: Trace, root: zarr.Group, site_classes: Sequence[SiteClass], device: str | None) -> None:
    """Compute the marginals of the classes, all in one go, and store them."""
    length = trace.selected_steps[-1] + 1
    sources: list[da.Array] = []
    targets: list[Any] = []
    with _metadata_errors(trace):
        for site_class in site_classes:
            group = root.require_group(f"{site_class.group}/{DERIVED}")
            lazy: dict[str, da.Array] = dict(all_marginals(trace, site_class, length, device).items())
            for spec in derived_arrays(site_class, length):
                sources.append(lazy[spec.name].rechunk({0: DERIVED_STEPS_PER_CHUNK}))
                # not compressed: these numbers hardly shrink, and reading them is what makes a map instant
                targets.append(group.create_array(**spec.creation, compressors=[zarr.codecs.Crc32cCodec()]))
    da.store(sources, targets, lock=False)


def _announce(trace: Trace, root: zarr.Group, site_classes: Sequence[SiteClass], copies: Documents | None) -> None:
    """Say that the marginals count: the last thing that is written."""
    caches = [f"{site_class.group}/{DERIVED}" for site_class in site_classes]
    for path in caches:
        if isinstance(trace.stored.files, LocalFiles):
            sync_tree(trace.stored.files.path / path)
        root[path].attrs[DERIVED_STEPS] = trace.steps
    if copies is not None:
        members = dict(_outside(copies, caches))
        for path in caches:
            members |= own_documents(root, path)
        seal(root.store, members, major=trace.manifest.major)
