"""`attrace record` loads a pipeline, runs it and records it; what does not fit is refused in one line."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import Result
from support.commands import examples_of
from support.models import box_mask, controlnet, paint_by_example, picture, stable_diffusion
from support.transformers import flux_kontext

from attrace.analysis import open_trace, ulam
from attrace.analysis.storage.object_files import ObjectFiles
from attrace.cli import main
from attrace.cli.shared.recording import recorder_at_work

from .conftest import Run

PAINT = (
    *("record", "--pipeline", "pipeline", "--class", "attrace.demo.pipeline:ReferenceInpaintPipeline"),
    *("--steps", "2", "-o", "run.zarr"),
    *("--input", "image=@scene.png", "--input", "mask_image=@mask.png", "--input", "reference_image=@shoe.png"),
)


@pytest.fixture
def workplace(saved_pipeline: Path, tmp_path: Path) -> Path:
    """A folder with a pipeline and pictures."""
    (tmp_path / "pipeline").symlink_to(saved_pipeline)
    picture(seed=0).save(tmp_path / "scene.png")
    picture(seed=1).save(tmp_path / "shoe.png")
    box_mask().save(tmp_path / "mask.png")
    return tmp_path


def failed(result: Result, code: int = 2) -> str:
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


@pytest.mark.usefixtures("workplace")
def test_a_run_is_recorded_with_its_pictures(run: Run) -> None:
    result = run(
        *PAINT,
        *("--seed", "3", "--reference", "reference_image", "--mask", "mask_image", "--scene", "image"),
        *("--save-image", "run.png"),
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout == "run.zarr\n"
    assert "2 steps of" in result.stderr
    trace = open_trace("run.zarr")
    assert (trace.status, trace.steps, trace.context) == ("complete", 2, "reference")
    assert (trace.manifest.seed, trace.manifest.pipeline.model_id) == (3, "pipeline")  # type: ignore[union-attr]
    assert set(trace.images) == {"generated", "input", "mask", "reference"}
    assert np.array_equal(trace.images["reference"], np.asarray(picture(seed=1)))
    with PIL.Image.open("run.png") as saved:
        assert np.array_equal(np.asarray(saved), trace.images["generated"])


@pytest.mark.usefixtures("workplace")
def test_the_seed_decides_the_picture(run: Run) -> None:
    generated = []
    for seed in (0, 0, 1):
        assert run(*PAINT, "--seed", seed, "--overwrite").exit_code == 0
        generated.append(open_trace("run.zarr").images["generated"].values)
    assert np.array_equal(generated[0], generated[1])
    assert not np.array_equal(generated[0], generated[2])


@pytest.mark.usefixtures("workplace")
def test_what_is_recorded_can_be_chosen(run: Run) -> None:
    result = run(
        *PAINT,
        *(
            "--layers",
            "up_blocks.1.*",
            "--encoding",
            "scores",
            "--input",
            "guidance_scale=3.0",
            "--branch",
            "both",
            "--no-prompts",
        ),
        *("--dtype", "bfloat16"),
    )
    assert result.exit_code == 0, (result.output, result.exception)
    trace = open_trace("run.zarr")
    assert trace.branches == ("conditional", "unconditional")
    assert all(layer.startswith("up_blocks.1.") for layer in trace.layers)
    assert {one.encoding for one in trace.manifest.classes} == {"scores"}
    assert trace.manifest.model_dtype == "bfloat16"


@pytest.mark.usefixtures("workplace")
def test_a_text_pipeline_records_its_tokens(run: Run, tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path / "text")
    result = run(
        "record",
        "--pipeline",
        "text",
        "--input",
        "prompt=a red cat",
        "--steps",
        2,
        "-o",
        "run.zarr",
        "--class",
        "StableDiffusionPipeline",
        "--input",
        "height=16",
        "--input",
        "width=16",
    )
    assert result.exit_code == 0, (result.output, result.exception)
    trace = open_trace("run.zarr")
    assert trace.context == "text"
    assert trace.manifest.classes[0].tokens is not None


def test_joint_attention_is_found_by_the_class_of_the_pipeline(run: Run, tmp_path: Path) -> None:
    flux_kontext().save_pretrained(tmp_path / "kontext")
    picture(40, 24).save("reference.png")
    sizes = {"height": 32, "width": 48, "max_area": 32 * 48, "_auto_resize": "false", "max_sequence_length": 12}
    inputs = [
        f"--input={name}={value}" for name, value in {"prompt": "a cat", "image": "@reference.png", **sizes}.items()
    ]
    arguments = ["--pipeline", "kontext", *inputs, "--steps", "2", "--reference", "image", "-o", "run.zarr"]
    for context, keys in (("reference", 15), ("text", 12)):
        result = run("record", *arguments, "--context", context, "--overwrite")
        assert result.exit_code == 0, result.output
        (one,) = open_trace(tmp_path / "run.zarr").manifest.classes
        assert (one.context, one.keys, one.has_lse, one.query_grid) == (context, keys, True, (4, 6))
    both = ("--context", "reference", "--context", "text", "--steps-kept", "1:", "--layers", "transformer_blocks.*")
    result = run("record", *arguments, *both, "--limit-bytes", "1MB", "--overwrite")
    assert result.exit_code == 0, result.output
    assert "recording 2 sites: about" in result.stderr
    trace = open_trace(tmp_path / "run.zarr")
    assert trace.contexts == ("reference", "text")
    assert (trace.time.tolist(), trace.layers) == ([1], ("transformer_blocks.0.attn",))
    result = run("record", *arguments, "--limit-bytes", "10", "--overwrite")
    assert "limit_bytes allows 10 B" in failed(result, code=1)


@pytest.mark.usefixtures("workplace")
def test_a_profile_and_another_network_are_named(run: Run, tmp_path: Path) -> None:
    controlnet().save_pretrained(tmp_path / "text")
    inputs = [f"--input={one}" for one in ("prompt=cat", "image=@scene.png", "height=16", "width=16")]
    arguments = ["record", "--pipeline", "text", *inputs, "--steps", "2", "-o", "run.zarr"]
    result = run(*arguments, "--profile", "seesr", "--network", "controlnet")
    assert result.exit_code == 0, (result.output, result.exception)
    manifest = open_trace("run.zarr").manifest
    assert (manifest.capture["profile"], manifest.denoiser.class_name) == ("seesr", "ControlNetModel")
    assert "stable-diffusion-xl" in failed(run(*arguments, "--profile", "none of them", "--overwrite"))
    Path("mine.toml").write_text('name = "mine"\n[[contexts]]\ncontext = "text"\nkeys = "text"\n')
    assert run(*arguments, "--profile", "mine.toml", "--overwrite").exit_code == 0
    assert open_trace("run.zarr").manifest.capture["profile"] == "mine"
    not_recorded = run("info", "run.zarr", "--layers").stdout.partition("not recorded")[2].splitlines()[1:]
    assert not_recorded
    for row in not_recorded:
        path, reason = row.split(maxsplit=1)
        assert (path.rpartition(".")[2], reason) == (
            "attn1",
            "self-attention of the picture (self_attention=True records it)",
        )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--input", "strength=1"), "takes no argument 'strength'"),
        (("--input", "guidance_scal=1"), "did you mean guidance_scale?"),
        (("--input", "guidance_scale=2", "--input", "guidance_scale=3"), "guidance_scale is given twice"),
        (("--input", "=3"), "expected NAME=VALUE"),
        (("--input", "prompt"), "expected NAME=VALUE"),
        (("--input", "extra=@none.png"), "inputs.extra: there is no file"),
        (("--input", "extra=@pipeline/model_index.json"), "is no picture"),
        (("--input", "extra=@pipeline"), "cannot be read"),
        (("--mask", "none.png"), "there is no file none.png"),
        (("--class", "StableDifusionPipeline"), "did you mean StableDiffusionPipeline"),
        (("--class", "attrace.nowhere:Class"), "package.module:Class"),
        (("--class", "pathlib:Path"), "expected a pipeline with from_pretrained"),
        (("--device", "abacus"), "expected a device of torch"),
        (("--layers", "mid.none"), "mid.none"),
        (("--limit", "many"), "500MB"),
        (("--steps-kept", "9:0"), "the first call before the last"),
        (("--ip-adapter", "adapter"), "go together"),
        (("--workers", "2"), "pass --jobs too"),
        (("--key-grid", "16"), "ROWSxCOLUMNS"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_what_does_not_fit_is_refused(run: Run, extra: tuple[str, ...], message: str) -> None:
    assert message in failed(run(*PAINT, *extra))
    assert not Path("run.zarr").exists()


@pytest.mark.usefixtures("workplace")
def test_a_missing_argument_is_named(run: Run) -> None:
    error = failed(run(*PAINT[:9], "--input", "image=@scene.png"))
    assert "needs mask_image, reference_image" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.usefixtures("workplace")
def test_cuda_that_is_not_there(run: Run) -> None:
    assert "sees no CUDA device" in failed(run(*PAINT, "--device", "cuda"))


@pytest.mark.usefixtures("workplace")
def test_a_pipeline_of_another_library_needs_its_class(run: Run) -> None:
    assert "name its class" in failed(run("record", "--pipeline", "pipeline", "-o", "run.zarr"))


def test_a_pipeline_that_is_not_there(run: Run, tmp_path: Path) -> None:
    error = failed(run("record", "--pipeline", "owner/none", "--local-files-only", "-o", "run.zarr"))
    assert "cannot load a pipeline from 'owner/none'" in error
    (tmp_path / "empty").mkdir()
    error = failed(run("record", "--pipeline", "empty", "-o", "run.zarr"))
    assert "without model_index.json" in error


@pytest.mark.usefixtures("workplace")
def test_what_is_there_is_kept_and_seen_before_anything_is_loaded(run: Run) -> None:
    Path("run.zarr").mkdir()
    assert "--overwrite" in failed(run("record", "--pipeline", "owner/none", "-o", "run.zarr"), 1)
    Path("run.png").write_text("precious")
    arguments = ("record", "--pipeline", "owner/none", "-o", "new.zarr", "--save-image", "run.png")
    assert "--overwrite" in failed(run(*arguments), 1)


@pytest.mark.usefixtures("workplace")
def test_a_recording_above_the_limit_fails(run: Run) -> None:
    result = run(*PAINT, "--limit", "1kB")
    assert result.exit_code == 1
    assert "Error:" in result.stderr


@pytest.fixture
def unhandled(number: signal.Signals) -> Iterator[signal.Handlers | Callable[..., Any]]:
    """What Python does at a signal by itself: a shell ignores Ctrl-C for what it starts in the background."""
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    yield usual
    signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("workplace")
def test_a_run_that_is_stopped_leaves_its_finished_steps(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, unhandled: signal.Handlers | Callable[..., Any]
) -> None:
    calls = []

    def stop_in_the_third(_: object, sample: torch.Tensor, *__: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            assert signal.getsignal(number) is signal.default_int_handler  # else the tests would end here
            os.kill(os.getpid(), number)
        return sample

    monkeypatch.setattr("diffusers.DDIMScheduler.scale_model_input", stop_in_the_third)
    result = run(*PAINT, "--steps", "5")
    assert result.exit_code == 1
    assert "Aborted!" in result.stderr
    trace = open_trace("run.zarr")
    assert (trace.status, trace.steps) == ("interrupted", 2)
    assert signal.getsignal(number) is unhandled


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with recorder_at_work("record"):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("workplace")
def test_values_that_the_pipeline_refuses(run: Run) -> None:
    error = failed(run(*PAINT[:-2], "--input", "reference_image=3"))
    assert "ReferenceInpaintPipeline does not work with these arguments" in error


JOBS = (*PAINT[:5], "--jobs", "jobs.jsonl", "-o", "runs", *PAINT[9:])
"""A list in place of one run; what its lines lack is as there."""


def write_jobs(*lines: dict[str, object]) -> None:
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.usefixtures("workplace")
def test_a_list_is_recorded_and_gone_on_with(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*JOBS, "--steps", "2", "--seed", "5", "--reference", "shoe.png")
    write_jobs({"id": "a"}, {"id": "b", "seed": 6, "inputs": {"guidance_scale": "three"}, "reference": "image"})
    result = run(*options)
    assert result.exit_code == 1
    assert result.stdout == "runs/a.zarr\n"
    assert "[1/2] a.zarr: 2 steps of" in result.stderr
    assert "2 jobs: 1 recorded, 0 were there, 1 failed" in result.stderr
    assert "jobs.jsonl:2: ReferenceInpaintPipeline does not work with these arguments" in result.stderr
    assert open_trace("runs/a.zarr").manifest.seed == 5
    assert np.array_equal(open_trace("runs/a.zarr").images["reference"], np.asarray(picture(seed=1)))

    write_jobs({"id": "a"}, {"id": "b", "seed": 6, "reference": "image"})
    result = run(*options, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    summary = json.loads(result.stdout)
    assert [summary[state] for state in ("jobs", "recorded", "there", "failed")] == [2, 1, 1, 0]
    assert [(one["job"], one["trace"], one["state"]) for one in summary["results"]] == [
        ("jobs.jsonl:1", "runs/a.zarr", "there"),
        ("jobs.jsonl:2", "runs/b.zarr", "recorded"),
    ]
    assert np.array_equal(open_trace("runs/b.zarr").images["reference"], np.asarray(picture(seed=0)))

    monkeypatch.setattr("attrace.recorder.jobs.pipelines.load_pipeline", None)  # all is there: nothing is loaded
    assert run(*options).stdout == "runs/a.zarr\nruns/b.zarr\n"


@pytest.mark.usefixtures("workplace")
def test_parts_of_a_list_are_disjoint(run: Run) -> None:
    write_jobs({"id": "a"}, {"id": "b"}, {"id": "c"})
    first = run(*JOBS, "--shard", "1/2")
    assert (first.exit_code, first.stdout) == (0, "runs/a.zarr\nruns/c.zarr\n"), (first.output, first.exception)
    assert "2 jobs: 2 recorded, 0 were there, 0 failed" in first.stderr
    second = run(*JOBS, "--shard", "2/2")
    assert second.stdout == "runs/b.zarr\n"
    assert "1 job: 1 recorded" in second.stderr


@pytest.mark.usefixtures("workplace")
def test_a_cluster_records_a_list(run: Run) -> None:
    distributed = pytest.importorskip("distributed", reason="clusters are an extra")
    write_jobs({"id": "a"}, {"id": "b", "inputs": {"guidance_scale": "three"}})
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as local:
        result = run(*JOBS, "--scheduler", local.scheduler_address, "--json")
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert [summary[state] for state in ("jobs", "recorded", "there", "failed")] == [2, 1, 0, 1]
    assert {one["trace"]: one["state"] for one in summary["results"]} == {
        "runs/a.zarr": "recorded",
        "runs/b.zarr": "failed",
    }
    assert "jobs.jsonl:2: ReferenceInpaintPipeline does not work with these arguments" in result.stderr
    assert open_trace("runs/a.zarr").status == "complete"


@pytest.mark.usefixtures("workplace", "memory")
def test_a_trace_is_sent_once_it_is_complete(run: Run) -> None:
    options = (*PAINT, "--steps", "2", "--push", "memory://bucket/run.zarr")
    result = run(*options)
    assert (result.exit_code, result.stdout) == (0, "run.zarr\n"), (result.output, result.exception)
    sent, here = open_trace("memory://bucket/run.zarr"), open_trace("run.zarr")
    assert sent.manifest == here.manifest
    np.testing.assert_array_equal(ulam(sent, direction="r2g"), ulam(here, direction="r2g"))
    assert "a trace is there" in failed(run(*options, "--overwrite"))
    assert open_trace("run.zarr").manifest == here.manifest  # found out before the model ran


@pytest.mark.parametrize("url", ["bucket/run.zarr", "memory://bucket/run.zip"])
@pytest.mark.usefixtures("workplace")
def test_where_no_trace_can_be_sent(run: Run, url: str) -> None:
    assert "expected the address of a folder" in failed(run(*PAINT, "--push", url))
    assert "--push s3://bucket/run.zarr" in failed(run(*PAINT[:5], "-o", "s3://bucket/run.zarr"))
    assert not Path("run.zarr").exists()


@pytest.mark.usefixtures("workplace", "memory")
def test_a_list_is_sent_and_what_did_not_arrive_is_sent_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*JOBS, "--steps", "2", "--push", "memory://bucket/runs/")
    write_jobs({"id": "a"}, {"id": "b", "seed": 6})
    put, sent, lost = ObjectFiles.write, [], ["b.zarr"]

    def write(files: ObjectFiles, name: str, content: bytes | Path) -> None:
        sent.append(files.where(name))
        if any(name in files.address for name in lost):
            raise OSError("the network is down")
        put(files, name, content)

    monkeypatch.setattr(ObjectFiles, "write", write)
    result = run(*options)
    assert result.exit_code == 1
    assert "complete, but not sent: the network is down" in result.stderr
    assert open_trace("memory://bucket/runs/a.zarr").steps == 2
    assert open_trace("runs/b.zarr").status == "complete"

    lost.clear()
    monkeypatch.setattr("attrace.recorder.jobs.pipelines.load_pipeline", None)  # all is here: nothing is loaded
    sent.clear()
    result = run(*options)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "2 jobs: 0 recorded, 2 were there, 0 failed" in result.stderr
    assert sent
    assert not any("a.zarr" in path for path in sent)
    assert open_trace("memory://bucket/runs/b.zarr").manifest == open_trace("runs/b.zarr").manifest


@pytest.mark.usefixtures("workplace")
def test_a_list_that_is_stopped_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    handled = []

    def stop(*_: object) -> None:
        handled.append(signal.getsignal(signal.SIGTERM))
        raise KeyboardInterrupt

    monkeypatch.setattr("diffusers.DDIMScheduler.scale_model_input", stop)
    write_jobs({"id": "a"})
    before = signal.getsignal(signal.SIGTERM)
    result = run(*JOBS, "--steps", "2")
    assert result.exit_code == 1
    assert "stopped with 0 of 1 job done: run the same command again" in result.stderr
    assert handled == [signal.default_int_handler]
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(Path("runs").iterdir()) == []


@pytest.mark.parametrize(
    ("line", "extra", "message"),
    [
        ({"id": "a", "sed": 1}, (), "jobs.jsonl:1: sed: expected one of id, output"),
        ({"id": "a"}, ("--overwrite",), "--jobs takes no --overwrite"),
        ({"id": "a"}, ("--save-image", "a.png"), "no --save-image"),
        ({"id": "a"}, ("--reference", "none.png"), "reference: there is no file"),
        ({"id": "a"}, ("--input", "prompt"), "expected NAME=VALUE"),
        ({"id": "a"}, ("-o", "s3://bucket/runs"), "by --push s3://bucket/runs"),
        ({"id": "a"}, ("-o", "scene.png"), "scene.png is a file"),
        ({"id": "a"}, ("--shard", "0/2"), "expected K/N with K from 1 to N, such as 3/8, found '0/2'"),
        ({"id": "a"}, ("--shard", "half"), "expected K/N"),
        ({"id": "a"}, ("--workers", "2", "--scheduler", "tcp://none:1"), "not both"),
        ({"id": "a", "seed": 2**64}, (), "seed: input should be less than"),
        ({"id": "a", "inputs": {"image": "@\0.png"}}, (), "inputs.image: embedded null byte"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_a_list_that_does_not_fit_is_refused_before_anything_is_loaded(
    run: Run, line: dict[str, object], extra: tuple[str, ...], message: str
) -> None:
    write_jobs(line)
    assert message in failed(run("record", "--pipeline", "owner/none", *JOBS[5:], *extra))


@pytest.mark.usefixtures("workplace")
def test_a_run_is_described_as_json(run: Run) -> None:
    described = json.loads(run(*PAINT, "--json").stdout)
    assert (described["trace"], described["steps"]) == ("run.zarr", 2)


@pytest.mark.parametrize("example", examples_of(main.commands["record"]), ids=" ".join)
@pytest.mark.usefixtures("workplace")
def test_every_example_works(example: list[str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "pipeline").unlink()
    stable_diffusion().save_pretrained(tmp_path / "pipeline")
    paint_by_example().save_pretrained(tmp_path / "owner/name")
    index = tmp_path / "owner/name/model_index.json"
    # as the published model names it
    index.write_text(index.read_text().replace('"diffusers",\n    "PaintBy', '"paint_by_example",\n    "PaintBy'))
    write_jobs({"id": "red", "inputs": {"prompt": "a red car"}})
    as_tested = {"cuda": "cpu", "float16": "float32", "50": "2", "20": "2"}
    result = run(*(as_tested.get(argument, argument) for argument in example))
    assert result.exit_code == 0, (result.output, result.exception)
    assert open_trace("runs/red.zarr" if "--jobs" in example else "run.zarr").steps == 2


def test_recording_without_torch_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("attrace.recorder.jobs.pipelines")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    error = failed(run("record", "--pipeline", "owner/none", "-o", "run.zarr"))
    assert 'pip install "attrace[record]"' in error


@pytest.mark.usefixtures("workplace")
def test_values_are_recorded_on_request_also_of_a_list(run: Run) -> None:
    pictures = ("--reference", "reference_image", "--mask", "mask_image")
    assert run(*PAINT, "--seed", "3", *pictures, "--values").exit_code == 0
    Path("jobs.jsonl").write_text('{"id": "a", "seed": 3}\n')
    result = run(*JOBS, "--steps", "2", *pictures, "--values")
    assert result.exit_code == 0, (result.output, result.exception)
    one, other = (ulam(open_trace(path), direction="g2r", contribution=True) for path in ("run.zarr", "runs/a.zarr"))
    np.testing.assert_array_equal(one, other)
    assert float(one.max()) > 1
