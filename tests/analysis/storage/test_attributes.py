"""Whatever the analysis returns says what it is, in which units and of which trace, as CF asks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import xarray as xr
from support.traces import make_trace, site_class

from attrace.analysis import Trace, correspondence, hlam, llam, marginals, open_trace, sram, tlam, token_map, ulam
from attrace.schemas import KeySegment

TEXT = site_class(
    "text/64x2h2d8", key_grid=None, keys=2, key_segments=(KeySegment(kind="text", count=2),), tokens=("red", "cat")
)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return open_trace(make_trace(tmp_path_factory.mktemp("traces") / "run.zarr", (site_class(), TEXT)).path)


MAPS: dict[str, Callable[[Trace], xr.DataArray]] = {
    "ulam": ulam,
    "tlam": lambda trace: tlam(trace, direction="g2r"),
    "hlam": lambda trace: hlam(trace, density=True),
    "llam": llam,
    "sram": lambda trace: sram(trace, at=(0, 0)),
    "token_map": lambda trace: token_map(trace.sel(context="text"), "cat"),
    "correspondence": correspondence,
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map(trace: Trace, name: str) -> None:
    attributes = MAPS[name](trace).attrs
    assert attributes["long_name"]
    assert attributes["units"]
    assert attributes["source"] == trace.path


def test_arrays_of_a_class(trace: Trace) -> None:
    for tree in (marginals(trace), trace.scores, trace.tree):
        dataset = tree.to_dict()["/reference/64x16h2d8"]
        assert dataset.attrs["source"] == trace.path
        for values in dataset.data_vars.values():
            assert values.attrs["long_name"]
            assert values.attrs["units"]
