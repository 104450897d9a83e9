"""Maps, figures and scores as the published code computes them, and maps of a resampler's tokens, from the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from support.traces import make_trace, site_class

from attrace.analysis import imacs, open_trace, ulam
from attrace.analysis.maps import i2am
from attrace.schemas import KeySegment

from .conftest import Run


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def failed(result: Result, code: int) -> str:
    assert result.exit_code == code, (result.output, result.exception)
    return result.stderr


@pytest.fixture
def plus(tmp_path: Path) -> Path:
    """A trace of an adapter whose four tokens a resampler made of 3 x 2 patches."""
    tokens = KeySegment(kind="other", count=4)
    adapter: dict[str, Any] = {"keys": 4, "key_segments": (tokens,), "key_grid": None}
    patches: dict[str, Any] = {"keys": 10, "key_segments": (KeySegment(kind="patch", count=6, grid=(3, 2)), tokens)}
    layers = ("encoder_hid_proj.image_projection_layers.0.layers.0.attn",)
    resampler = site_class("image-prompt/4x10h2d8", query_grid=(1, 4), key_grid=None, layers=layers, **patches)
    classes = (
        resampler.model_copy(update={"query_grid": None}),
        site_class("image-prompt/64x4h2d8", layers=("up.0.attn2.processor.to_k_ip.0",), first_order=1, **adapter),
    )
    return make_trace(tmp_path / "plus.zarr", classes, steps=5).path


@pytest.mark.usefixtures("trace")
def test_maps_as_published(run: Run) -> None:
    told = json.loads(succeeded(run("maps", "run.zarr", "-o", "maps.npz", "--compat", "i2am", "--json")))
    assert list(told["maps"]) == [f"{level}_r2g" for level in ("ulam", "tlam", "hlam", "llam")]
    with np.load("maps.npz") as made:
        np.testing.assert_array_equal(made["ulam_r2g"], i2am.ulam(open_trace("run.zarr")))
    refused = failed(run("maps", "run.zarr", "-o", "g2r.npz", "--compat", "i2am", "--direction", "g2r"), 2)
    assert "warp_flow_blks 4 of StableVITON" in refused
    assert "takes none of --density" in failed(
        run("maps", "run.zarr", "-o", "d.npz", "--compat", "i2am", "--density"), 2
    )


@pytest.mark.usefixtures("trace")
def test_chosen_patches_as_published(run: Run) -> None:
    arguments = ("sram", "run.zarr", "--at", "3,4", "--layers", "up_blocks.0*", "--compat", "i2am")
    succeeded(run(*arguments, "-o", "sram.npz"))
    expected = i2am.sram(open_trace("run.zarr"), (3, 4), layers="up_blocks.0*")
    with np.load("sram.npz") as made:
        np.testing.assert_array_equal(made["sram_g2r"], expected)
    assert "--direction g2r only" in failed(run(*arguments, "--direction", "r2g"), 2)


@pytest.mark.usefixtures("trace")
def test_figures_as_published(run: Run) -> None:
    told = json.loads(succeeded(run("plot", "run.zarr", "-o", "figures", "--compat", "i2am", "--json")))
    assert [Path(file).stem for file in told["files"]] == ["ulam_r2g", "tlam_r2g", "hlam_r2g", "llam_r2g"]


@pytest.mark.usefixtures("trace")
def test_score_takes_the_published_map(run: Run) -> None:
    trace = open_trace("run.zarr")
    mask = trace.images["mask"].values > 127
    told = [json.loads(succeeded(run("score", "run.zarr", "--json", *more))) for more in ((), ("--compat", "i2am"))]
    plain, published = (one["ulam_r2g"]["imacs_stableviton"] for one in told)
    assert published == pytest.approx(float(imacs(i2am.ulam(trace), mask, variant="stableviton")))
    assert published != pytest.approx(plain)


@pytest.mark.usefixtures("plus")
def test_tokens_of_a_resampler(run: Run) -> None:
    arguments = ("maps", "plus.zarr", "-o", "maps.npz", "--level", "ulam", "--json")
    assert list(json.loads(succeeded(run(*arguments)))["maps"]) == ["ulam_r2g"]
    told = json.loads(succeeded(run(*arguments, "--resampler", "rollout", "--overwrite")))["maps"]
    assert told["ulam_g2r"]["dims"] == {"row": 3, "column": 2}
    with np.load("maps.npz") as made:
        expected = ulam(open_trace("plus.zarr"), direction="g2r", resampler="rollout")
        np.testing.assert_array_equal(made["ulam_g2r"], expected)
    succeeded(run("sram", "plus.zarr", "--at", "1,1", "--resampler", "last"))
    assert "--resampler last" in failed(run("sram", "plus.zarr", "--at", "1,1"), 2)
    files = json.loads(succeeded(run("plot", "plus.zarr", "-o", "figures", "--resampler", "last", "--json")))["files"]
    assert {"ulam_r2g", "ulam_g2r", "sram_g2r"} <= {Path(file).stem for file in files}
