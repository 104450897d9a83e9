"""The traces that published versions wrote give the same numbers for ever; these were computed with NumPy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from support.documents import seal_again
from support.published_rich import JOINT, MANIFEST, STEPS, TEXT, arrays, bfloat16, write_rich

from attrace.analysis import Trace, open_trace, sram, ulam, unpack
from attrace.analysis.integrity.verify import verify
from attrace.analysis.trace.derived import open_derived
from attrace.schemas.layout import stored_name

DATA = Path(__file__).parents[2] / "data"

R2G = [
    [0.066491885, 0.068167394, 0.069307064, 0.049422992],
    [0.060014575, 0.164370631, 0.083309954, 0.120839846],
    [0.094936085, 0.069706184, 0.067455004, 0.085978386],
]
G2R = [[0.147178212, 0.152554901], [0.121701905, 0.166859531]]
ROW = [[0.200712560, 0.348919905], [0.031307912, 0.013667287]]
TEXT_R2G = [
    [0.080390423, 0.081730422, 0.096529400, 0.096836684],
    [0.109043034, 0.095481271, 0.083606194, 0.073208030],
    [0.064103093, 0.056130544, 0.080797064, 0.082143841],
]
CONTENT = {
    1: "17045fc0dc2305b58deb9fb83f92e3f94a54086db4f42842cbe7c1c1e160b38e",
    2: "ef4fe043c3ac891e6ee87beecd83ccd49fff4a7d20d76649b706f170e59d0e57",
}


@pytest.fixture(params=["1.0", "2.0", "now"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The trace that is kept, or the same as this code writes it."""
    if request.param != "now":
        return DATA / f"rich-{request.param}.zip"
    write_rich(tmp_path / "now.zip")
    return tmp_path / "now.zip"


def _maps(trace: Trace) -> None:
    np.testing.assert_allclose(ulam(trace, direction="r2g", size=(3, 4), density=False), R2G, rtol=1e-5)
    np.testing.assert_allclose(ulam(trace, direction="g2r", size=(2, 2), density=False), G2R, rtol=1e-5)


def test_it_is_as_it_was_written(path: Path) -> None:
    trace = open_trace(path)
    of_file = {"version": trace.manifest.version, "finished": trace.manifest.finished}
    assert trace.manifest == MANIFEST.replace(status="interrupted", steps=STEPS, classes=(JOINT, TEXT), **of_file)
    assert (trace.steps, list(trace.timesteps)) == (STEPS, [1.0, 0.75, 0.5])
    for name, expected in arrays().items():
        group, _, own = name.rpartition("/")
        stored = trace.stored.array(f"{group}/{stored_name(own, trace.manifest.major)}")
        assert stored.dtype == expected.dtype, name
        np.testing.assert_array_equal(stored[:], expected[:STEPS], err_msg=name)
    query = trace.stored.array(f"{JOINT.group}/{stored_name('query_vector', trace.manifest.major)}")[:]
    np.testing.assert_array_equal(query, bfloat16(query))


def test_its_maps_are_the_kept_marginals(path: Path) -> None:
    trace = open_trace(path)
    assert open_derived(trace.stored, JOINT, STEPS) is not None
    assert open_derived(trace.stored, TEXT, STEPS) is None  # of float64 none are kept
    _maps(trace)


def test_its_maps_computed_anew(path: Path, tmp_path: Path) -> None:
    folder = unpack(path, tmp_path / "run.zarr")
    group = zarr.open_group(folder, use_consolidated=False)
    del group[f"{JOINT.group}/derived"]
    seal_again(folder)
    trace = open_trace(folder)
    assert open_derived(trace.stored, JOINT, STEPS) is None
    _maps(trace)


def test_a_row_of_it_and_its_text(path: Path) -> None:
    trace = open_trace(path)
    one = trace.sel(layer="blocks.0.attn", time=1)
    np.testing.assert_allclose(sram(one, at=(2, 2), size=(2, 2), density=False), ROW, rtol=1e-5)
    text = trace.sel(context="text")
    np.testing.assert_allclose(ulam(text, direction="r2g", size=(3, 4), density=False), TEXT_R2G, rtol=1e-6)


def test_it_is_sound_and_its_content_is_known(path: Path) -> None:
    report = verify(path)
    assert (report.issues, report.status) == ((), "interrupted")
    assert report.content_id == CONTENT[open_trace(path).manifest.major]
