"""A trace that was opened, and what can be made of it.

The methods of `Trace` are functions of this room and of the rooms above, imported when they are called: the one place
that looks upwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from attrace.analysis.storage.store import StoredTrace, open_store
from attrace.analysis.trace.selected import TraceSelection, branches_of
from attrace.schemas.checks import require_type
from attrace.schemas.layout import TIME, TIMESTEP
from attrace.schemas.words import CONTEXT_PREFERENCE

if TYPE_CHECKING:
    import xarray as xr
    from zarr.abc.store import Store

    from attrace import analysis as functions
else:

    class _Method:
        """A public function as a method, imported when it is looked up, with its signature and its help."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __get__(self, trace: Any, owner: type) -> Any:
            function = getattr(import_module("attrace.analysis"), self._name)
            return function if trace is None else MethodType(function, trace)

    class _Functions:
        """The public functions of `attrace.analysis` as methods, by name."""

        __getattr__ = staticmethod(_Method)

    functions = _Functions()


class Trace(TraceSelection):
    """A trace, opened for reading: nothing but metadata is read until something is computed.

    One context (what the keys are) and one branch of classifier-free guidance are selected at a time: the first present
    of reference, image-prompt, text and self, and `conditional`, unless `sel` chooses others. Traces are
    immutable; `sel` gives another one.

    The methods `ulam`, `tlam`, `hlam`, `llam`, `sram`, `token_map`, `marginals`, `correspondence`, `plot`, `explore`
    and `precompute` are the functions of these names, and `score` is `score_trace`: `trace.ulam(size=(64, 64))` is
    `ulam(trace, size=(64, 64))`.
    """

    @cached_property
    def images(self) -> Mapping[str, xr.DataArray]:
        """The pictures of the trace by name, lazily: uint8 (row, column) or (row, column, channel)."""
        from attrace.analysis.trace.views import image_array

        return {name: image_array(self, name) for name in self.image_shapes}

    @cached_property
    def scores(self) -> xr.DataTree:
        """The scores s, lazily: for each class a `scores` (time, layer, head, query, key), however it is stored.

        Stored scores are read; stored queries and keys are multiplied. float32, or float64 where that is stored. NaN
        where a site was not called in a step. Coordinates: `layer` (module path), `timestep`, `head`, `query_row`,
        `query_column`, `key_row`, `key_column` (-1 off the grid), `key_kind`, and `token` where keys are text.
        """
        from attrace.analysis.trace.views import scores_tree

        return scores_tree(self)

    @cached_property
    def tree(self) -> xr.DataTree:
        """The stored arrays, lazily and labelled like `scores`.

        A key vector that did not change is stored once; here it stands in every step. Arrays have the names of the
        latest version of the format, also those of a trace of an older one.
        """
        from attrace.analysis.trace.views import stored_tree

        return stored_tree(self)

    ulam = functions.ulam
    tlam = functions.tlam
    hlam = functions.hlam
    llam = functions.llam
    sram = functions.sram
    token_map = functions.token_map
    marginals = functions.marginals
    correspondence = functions.correspondence
    plot = functions.plot
    explore = functions.explore
    score = functions.score_trace
    precompute = functions.precompute

    def __repr__(self) -> str:
        from attrace.analysis.trace.summary import describe

        return describe(self)

    def _repr_mimebundle_(self, **_: object) -> Any:
        from attrace.analysis.explorer.widget import notebook_bundle

        return notebook_bundle(self)

    def _repr_html_(self) -> str:
        from attrace.analysis.trace.rich import describe_as_html

        return describe_as_html(self)


def open_trace(source: str | Path | Store, *, storage_options: Mapping[str, Any] | None = None) -> Trace:
    """Open a trace; nothing is read but metadata.

    Parameters
    ----------
    source
        A folder, a `.zip` file, an address (`s3://`, `gs://`, `https://`, `hf://`, ...) or a Zarr store. Addresses
        need obstore, or huggingface_hub for `hf://` (`pip install 'attrace[cluster]'`).
    storage_options
        Options of the address's client: keywords of `obstore.store.from_url`, or of `HfFileSystem`.

    Returns
    -------
    Trace
        Its finished steps; a run that was cut off opens too.

    Raises
    ------
    TraceNotFoundError
        If there is nothing at `source`.
    TraceFormatError
        If what is there is not a trace.
    TraceVersionError
        If it is written in a newer major version of the format.
    InputTypeError
        If `source` is none of these.
    """
    return trace_of(open_store(source, storage_options))


def trace_of(stored: StoredTrace) -> Trace:
    """The trace in a store: its finished steps, with nothing selected."""
    stored.check_steps()
    manifest = stored.manifest
    present = {site_class.context for site_class in manifest.classes}
    context = next((context for context in CONTEXT_PREFERENCE if context in present), None)
    branches = branches_of(manifest, context)
    finished = stored.finished_steps
    return Trace(
        stored=stored,
        calls=stored.array(TIME)[:],
        timestep_values=stored.array(TIMESTEP)[:],
        finished_steps=finished,
        selected_steps=finished,
        context=context,
        branch=branches[0] if branches else None,
    )


def require_trace(trace: object) -> None:
    """Refuse what is no trace, such as the path of one."""
    require_type(trace, Trace, "trace", "a trace, which attrace.open_trace opens")
