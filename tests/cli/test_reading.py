"""Commands that read a trace: what they print and write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import xarray as xr
from click.testing import Result

from attrace.analysis import llam, open_trace, tlam, ulam

from .conftest import Run

MAPS = [f"{level}_{direction}" for direction in ("r2g", "g2r") for level in ("ulam", "tlam", "hlam", "llam")]


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr == ""
    return result.stdout


@pytest.mark.usefixtures("trace")
def test_info_tells_what_was_recorded(run: Run) -> None:
    told = succeeded(run("info", "run.zarr"))
    for expected in (
        "complete, 10 finished steps",
        "Made",
        "generated 32x32",
        "reference/64x16h2d8",
        "1 cls + 4x4 patch",
    ):
        assert expected in told
    assert "up_blocks.0.attn2" not in told


@pytest.mark.usefixtures("trace")
def test_the_labels_that_info_shows_select_their_layers(run: Run) -> None:
    table = succeeded(run("info", "run.zarr", "--layers")).rpartition("order")[2].splitlines()[1:]
    shown = {row.split()[1]: row.split()[2] for row in table}
    assert shown == {label: f"{label}.attn2" for label in ("down.0", "up.0", "up_blocks.0", "up_blocks.1")}
    for label, path in shown.items():
        chosen = ["--layers", label, "--context", "reference" if "blocks" in label else "text"]
        chosen += ["--level", "llam", "--direction", "r2g", "--overwrite"]
        succeeded(run("maps", "run.zarr", "-o", "maps.npz", *chosen))
        with np.load("maps.npz") as stored:
            assert stored["llam_r2g.layer"].tolist() == [path]


@pytest.mark.usefixtures("trace")
def test_info_as_json_adds_up(run: Run, tmp_path: Path) -> None:
    told = json.loads(succeeded(run("info", "run.zarr", "--json")))
    assert told["finished_steps"] == 10
    assert told["manifest"]["format"] == "attrace-trace"
    assert told["images"] == {"generated": [32, 32, 3], "mask": [32, 32], "reference": [32, 32, 3]}
    on_disk = sum(file.stat().st_size for file in (tmp_path / "run.zarr").rglob("*") if file.is_file())
    assert told["bytes"] == on_disk == sum(told["bytes_by_group"].values())
    assert set(told["bytes_by_group"]) == {"reference/64x16h2d8", "text/64x3h2d8", "images", ""}
    assert min(told["bytes_by_group"].values()) > 0


def test_info_reads_a_packed_trace(run: Run, trace: Path) -> None:
    shutil.make_archive(str(trace.with_suffix("")), "zip", trace)
    told = json.loads(succeeded(run("info", "run.zip", "--json")))
    assert told["finished_steps"] == 10
    assert told["bytes_by_group"]["images"] > 0


@pytest.mark.usefixtures("trace")
def test_verify_passes_a_sound_trace(run: Run) -> None:
    assert "run.zarr: valid; 10 steps" in succeeded(run("verify", "run.zarr"))
    told = json.loads(succeeded(run("verify", "run.zarr", "--json")))
    assert told["valid"] is True
    assert told["issues"] == []


def test_verify_names_the_damage_and_exits_with_3(run: Run, trace: Path) -> None:
    (trace / "reference/64x16h2d8/key_vector/c/0/0/0/0/0").write_bytes(b"gone")
    result = run("verify", "run.zarr")
    assert result.exit_code == 3
    assert "problem: reference/64x16h2d8/key_vector/c/0/0/0/0/0: the chunk cannot be read" in result.stdout
    result = run("verify", "run.zarr", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["issues"][0]["chunk"] == "c/0/0/0/0/0"


@pytest.mark.usefixtures("trace")
def test_maps_as_numpy_hold_every_level_with_its_labels(run: Run) -> None:
    table = succeeded(run("maps", "run.zarr", "-o", "maps.npz"))
    assert [line.split()[0] for line in table.splitlines()[1:]] == MAPS
    trace = open_trace("run.zarr")
    with np.load("maps.npz", allow_pickle=False) as stored:
        described = json.loads(str(stored["attributes"]))
        assert list(described) == MAPS
        assert np.array_equal(stored["ulam_r2g"], ulam(trace).values)
        assert np.array_equal(stored["tlam_g2r"], tlam(trace, direction="g2r").values)
        assert stored["llam_g2r.layer"].tolist() == ["up_blocks.0.attn2", "up_blocks.1.attn2"]
        assert described["tlam_g2r"]["dims"] == ["time_group", "row", "column"]
        assert described["tlam_g2r"]["attributes"]["direction"] == "g2r"


@pytest.mark.usefixtures("trace")
def test_maps_as_zarr_open_with_xarray(run: Run) -> None:
    succeeded(run("maps", "run.zarr", "-o", "maps.zarr"))
    tree = xr.open_datatree("maps.zarr", engine="zarr", consolidated=False)
    assert sorted(tree.children) == ["g2r", "r2g"]
    expected = llam(open_trace("run.zarr"), direction="g2r").compute()
    stored = tree["g2r/llam"]
    assert isinstance(stored, xr.DataArray)
    assert np.array_equal(stored.values, expected.values)
    assert stored["layer"].values.tolist() == expected["layer"].values.tolist()
    assert stored.attrs["level"] == "llam"


@pytest.mark.usefixtures("trace")
def test_maps_as_netcdf_open_with_xarray(run: Run) -> None:
    succeeded(run("maps", "run.zarr", "-o", "maps.nc", "--direction", "r2g"))
    expected = llam(open_trace("run.zarr")).compute()
    with xr.open_datatree("maps.nc") if _has_groups() else xr.open_dataset("maps.nc", engine="scipy") as stored:
        found = stored["r2g/llam"] if _has_groups() else stored["llam"]
        assert np.allclose(np.asarray(found), expected.values)


def _has_groups() -> bool:
    from attrace.cli.shared.map_files import netcdf_has_groups

    return netcdf_has_groups()


@pytest.mark.usefixtures("trace")
def test_netcdf_without_groups_holds_one_direction(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attrace.cli.shared.map_files.netcdf_has_groups", lambda: False)
    result = run("maps", "run.zarr", "-o", "maps.nc")
    assert result.exit_code == 2
    assert "pip install 'attrace[netcdf]'" in result.stderr
    assert not Path("maps.nc").exists()


@pytest.mark.parametrize("suffix", [".npz", ".zarr"])
@pytest.mark.usefixtures("trace")
def test_maps_are_replaced_with_overwrite_and_whole_or_not_at_all(
    run: Run, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(f"maps{suffix}")
    succeeded(run("maps", "run.zarr", "-o", output, "--level", "ulam"))
    succeeded(run("maps", "run.zarr", "-o", output, "--level", "hlam", "--overwrite"))
    before = _content(output)
    assert any("hlam" in name for name in before)

    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", broken)
    monkeypatch.setattr("xarray.DataTree.to_zarr", broken)
    assert run("maps", "run.zarr", "-o", output, "--overwrite").exit_code == 1
    assert _content(output) == before
    assert sorted(path.name for path in Path().iterdir()) == [output.name, "run.zarr"]


def _content(path: Path) -> list[str]:
    if path.is_dir():
        return sorted(str(file.relative_to(path)) for file in path.rglob("*"))
    with np.load(path) as stored:
        return sorted(stored)


@pytest.mark.usefixtures("trace")
def test_maps_of_a_selection(run: Run) -> None:
    told = json.loads(
        succeeded(
            run(
                *("maps", "run.zarr", "-o", "maps.npz", "--json", "--level", "ulam", "--direction", "r2g"),
                *("--steps", "2:4", "--layers", "up_blocks.1.*", "--heads", "1", "--size", "5x6"),
            )
        )
    )
    assert told["maps"]["ulam_r2g"]["dims"] == {"row": 5, "column": 6}
    selected = open_trace("run.zarr").sel(time=slice(2, 4), layer="up_blocks.1.*", head=1)
    with np.load("maps.npz") as stored:
        assert np.array_equal(stored["ulam_r2g"], ulam(selected, size=(5, 6)).values)


@pytest.mark.usefixtures("trace")
def test_a_context_without_a_picture_has_the_other_direction(run: Run) -> None:
    table = succeeded(run("maps", "run.zarr", "-o", "maps.npz", "--context", "text", "--level", "ulam"))
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["ulam_r2g"]


@pytest.mark.usefixtures("trace")
def test_plot_draws_every_level_and_direction(run: Run) -> None:
    printed = succeeded(run("plot", "run.zarr", "-o", "figures")).splitlines()
    assert printed == [f"figures/{name}.png" for name in [*MAPS, "sram_r2g", "sram_g2r"]]
    for file in printed:
        with PIL.Image.open(file) as picture:
            assert picture.width > 400


@pytest.mark.usefixtures("trace")
def test_plot_takes_options(run: Run) -> None:
    told = succeeded(
        run(
            *("plot", "run.zarr", "-o", "deep/figures", "--level", "tlam", "--direction", "g2r", "--groups", "3"),
            *("--format", "svg", "--smooth", "--json"),
        )
    )
    assert json.loads(told) == {"files": ["deep/figures/tlam_g2r.svg"]}
    drawn = Path("deep/figures/tlam_g2r.svg").read_text()
    assert "interpolated between cells" in drawn
    assert "step" in drawn


@pytest.mark.usefixtures("trace")
def test_plot_marks_the_patch_that_is_asked_for(run: Run) -> None:
    arguments = ("plot", "run.zarr", "--level", "sram", "--direction", "g2r", "--format", "svg")
    succeeded(run(*arguments, "-o", "here", "--at", "1,1"))
    succeeded(run(*arguments, "-o", "there", "--at", "30,30"))
    assert Path("here/sram_g2r.svg").read_bytes() != Path("there/sram_g2r.svg").read_bytes()


@pytest.mark.usefixtures("trace")
def test_density_is_relative_to_even_attention(run: Run) -> None:
    for options, mean in ((), 1), (("--density",), 1), (("--no-density",), 1 / 64):
        succeeded(run("maps", "run.zarr", "-o", "maps.npz", "--level", "ulam", "--overwrite", *options))
        with np.load("maps.npz") as stored:
            # every query has the same share of a softmax over 64 of them, resized or not
            assert stored["ulam_r2g"].mean() == pytest.approx(mean, rel=1e-5)
    succeeded(run("plot", "run.zarr", "-o", "even", "--level", "ulam", "--format", "svg"))
    succeeded(run("plot", "run.zarr", "-o", "plain", "--level", "ulam", "--format", "svg", "--no-density"))
    assert Path("even/ulam_r2g.svg").read_bytes() != Path("plain/ulam_r2g.svg").read_bytes()


@pytest.mark.usefixtures("trace")
def test_equal_figures_are_equal_files(run: Run) -> None:
    for folder in ("one", "other"):
        succeeded(run("plot", "run.zarr", "-o", folder, "--level", "ulam", "--direction", "r2g"))
    assert Path("one/ulam_r2g.png").read_bytes() == Path("other/ulam_r2g.png").read_bytes()
