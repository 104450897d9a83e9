"""What goes wrong is said once, clearly, and never costs the finished steps or the user's picture."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0
from support import models
from support.reading import read_array, read_manifest, read_scores
from torch import nn

from attrace.analysis.integrity.repair import repair
from attrace.analysis.integrity.verify import verify
from attrace.recorder import Recording, record
from attrace.recorder.writing.store import TraceStore
from attrace.schemas import CaptureError, InputError, SizeLimitError, TraceExistsError, TraceNotFoundError


def run(pipeline: Any, prompt: Any = "a cat", **arguments: Any) -> Any:
    given = {"num_inference_steps": 4, "height": 16, "width": 16, "output_type": "np"} | arguments
    return pipeline(prompt, generator=models.noise(), **given).images


def record_calls(unet: Any, path: Path, *calls: Callable[[], object], **arguments: Any) -> Recording:
    """Record calls of a bare denoiser."""
    given: dict[str, Any] = {"context": "text", "strict": True} | arguments
    with record(unet, path, **given) as recording:
        for call in calls:
            call()
    return recording


def bare_call(unet: Any, rows: int = 1, keys: int = 16) -> None:
    with torch.no_grad():
        unet(torch.zeros(rows, 4, 8, 8), 5, encoder_hidden_states=torch.ones(rows, keys, 32))


def call_without_middle(unet: Any) -> None:
    """A call that skips the attention of the middle block, as a block cache would."""
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    block.forward = lambda hidden, **_: hidden
    bare_call(unet)
    del block.forward


class TestRefusedBeforeTheRun:
    """Nothing is written, no hook is left."""

    @pytest.fixture
    def pipeline(self) -> Any:
        return models.stable_diffusion()

    def refuse(self, error: type[Exception], match: str, model: Any, path: Path, **arguments: Any) -> None:
        with pytest.raises(error, match=match), record(model, path, **arguments):
            pytest.fail("the body must not run")
        assert not path.exists()

    def test_unknown_layer(self, pipeline: Any, tmp_path: Path) -> None:
        self.refuse(InputError, r"'mid'.*attn1.*and \d+ more", pipeline, tmp_path / "run.zarr", layers=["up*", "mid"])

    @pytest.mark.parametrize("steps", [slice(-3, None), slice(3, 3), slice(None, None, -1), [], [-1]])
    def test_steps_counted_from_the_end_or_none(self, pipeline: Any, steps: Any, tmp_path: Path) -> None:
        self.refuse(InputError, "counted from 0", pipeline, tmp_path / "run.zarr", steps=steps)

    @pytest.mark.parametrize(
        ("name", "value"), [("encoding", "probabilities"), ("capture", "magic"), ("codec", "gzip")]
    )
    def test_unknown_word(self, pipeline: Any, name: str, value: str, tmp_path: Path) -> None:
        self.refuse(InputError, f"{name}='{value}'", pipeline, tmp_path / "run.zarr", **{name: value})

    def test_no_model(self, tmp_path: Path) -> None:
        self.refuse(InputError, "found str", "a/model", tmp_path / "run.zarr")

    def test_model_without_attention(self, tmp_path: Path) -> None:
        self.refuse(CaptureError, "`to_q`", nn.Linear(2, 2), tmp_path / "run.zarr")

    def test_joint_attention(self, tmp_path: Path) -> None:
        joint = Attention(query_dim=8, heads=2, dim_head=4, added_kv_proj_dim=8, processor=AttnAddedKVProcessor2_0())
        self.refuse(
            CaptureError, "is joint.*expected encoder_hidden_states", nn.Sequential(joint), tmp_path / "run.zarr"
        )

    def test_mask_of_another_size_than_the_input(self, pipeline: Any, tmp_path: Path) -> None:
        pictures = {"input": models.picture(16, 16), "mask": models.box_mask(16, 24)}
        self.refuse(InputError, "16 x 24.*16 x 16", pipeline, tmp_path / "run.zarr", **pictures)

    @pytest.mark.parametrize("reference", [np.zeros((4, 4, 7), np.uint8), np.zeros(3, np.uint8), np.full((2, 2), 2.0)])
    def test_what_is_no_picture(self, pipeline: Any, reference: Any, tmp_path: Path) -> None:
        self.refuse(InputError, "'reference'", pipeline, tmp_path / "run.zarr", reference=reference)

    def test_existing_path(self, pipeline: Any, tmp_path: Path) -> None:
        taken, free = tmp_path / "taken", tmp_path / "free.zarr"
        taken.mkdir()
        for overwrite in (False, True):  # a folder that is no trace is never replaced
            with pytest.raises(TraceExistsError, match="taken"):
                record(pipeline, [free, taken], overwrite=overwrite).__enter__()
        assert list(tmp_path.iterdir()) == [taken]

    def test_one_path_twice(self, pipeline: Any, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="all different"):
            record(pipeline, [tmp_path / "a", tmp_path / "a"])

    def test_compiled_denoiser(self, pipeline: Any, tmp_path: Path) -> None:
        class OptimizedModule(nn.Module):  # what torch.compile returns, without the seconds that it takes to import
            def __init__(self, module: nn.Module) -> None:
                super().__init__()
                self._orig_mod = module

        self.refuse(CaptureError, "compiled", OptimizedModule(pipeline.unet), tmp_path / "run.zarr")

    def test_block_compiled_in_place(self, pipeline: Any, tmp_path: Path) -> None:
        pipeline.unet.up_blocks[1]._compiled_call_impl = lambda *_: None
        self.refuse(CaptureError, r"up_blocks\.1 was compiled", pipeline, tmp_path / "run.zarr")
        with record(pipeline, tmp_path / "run.zarr", layers="down_blocks.*"):
            pipeline.unet.up_blocks[1]._compiled_call_impl = None
            run(pipeline)

    def test_fused_projections(self, pipeline: Any, tmp_path: Path) -> None:
        pipeline.fuse_qkv_projections()
        self.refuse(CaptureError, "unfuse_qkv_projections", pipeline, tmp_path / "run.zarr")
        pipeline.unfuse_qkv_projections()
        with record(pipeline, tmp_path / "run.zarr"):
            run(pipeline)

    def test_sliced_attention_under_interception(self, pipeline: Any, tmp_path: Path) -> None:
        pipeline.enable_attention_slicing(1)
        self.refuse(CaptureError, "slices.*layers=", pipeline, tmp_path / "run.zarr", capture="attention")
        with record(pipeline, tmp_path / "run.zarr"):
            run(pipeline)
        assert read_manifest(tmp_path / "run.zarr").capture["method"] == "hooks"

    @pytest.mark.parametrize("name", ["XFormersAttnProcessor", "AttnProcessor"])
    def test_attention_that_torch_does_not_compute_under_interception(
        self, pipeline: Any, name: str, tmp_path: Path
    ) -> None:
        processor = type(name, (), {"__call__": lambda *_: None})()
        pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor = processor
        self.refuse(CaptureError, f"mid_block.*{name}", pipeline, tmp_path / "run.zarr", capture="attention")


class TestRefusedInTheFirstStep:
    """Raised at once: a wrong argument must not cost a whole run."""

    def fail(self, error: type[Exception], match: str, pipeline: Any, path: Path, **arguments: Any) -> None:
        prompt = arguments.pop("prompt", "a cat")
        calls: list[int] = []
        handle = pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(error, match=match), record(pipeline, path, **arguments):
            run(pipeline, prompt)
        handle.remove()
        assert calls == [1]
        assert read_manifest(path).status == "interrupted"
        assert not pipeline.unet._forward_hooks

    def test_more_samples_than_paths(self, tmp_path: Path) -> None:
        match = "batch of 4.*1 path, expected 2: pass 2 paths"
        self.fail(InputError, match, models.stable_diffusion(), tmp_path / "run.zarr", prompt=["a", "b"])

    def test_guidance_that_does_not_fit(self, tmp_path: Path) -> None:
        arguments = {"guidance": ("a", "b", "c")}
        self.fail(InputError, r"batch of 2.*need 3", models.stable_diffusion(), tmp_path / "run.zarr", **arguments)

    def test_unknown_branch(self, tmp_path: Path) -> None:
        match = "'image' is not in the batch; it has unconditional, conditional"
        self.fail(InputError, match, models.stable_diffusion(), tmp_path / "run.zarr", branch="image")

    def test_unnamed_blocks_of_a_bare_denoiser(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        with pytest.raises(InputError, match="pass one path for each sample, and guidance="):
            record_calls(unet, tmp_path / "run.zarr", lambda: bare_call(unet, rows=2))

    def test_key_grid_that_does_not_fit(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        arguments = {"context": "reference", "key_grid": (3, 3)}
        with pytest.raises(InputError, match=r"key_grid=\(3, 3\) holds 9 keys.*16"):
            record_calls(unet, tmp_path / "run.zarr", lambda: bare_call(unet), **arguments)

    def test_tokens_that_do_not_fit(self, tmp_path: Path) -> None:
        match = "2 texts; the text context has 16 keys"
        self.fail(InputError, match, models.stable_diffusion(), tmp_path / "run.zarr", tokens=["a", "b"])

    def test_only_self_attention(self, tmp_path: Path) -> None:
        match = "self_attention=True"
        self.fail(CaptureError, match, models.stable_diffusion(), tmp_path / "run.zarr", layers="*.attn1")

    def test_call_inside_a_call(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        handle = unet.mid_block.register_forward_pre_hook(lambda *_: bare_call(unet))
        with pytest.raises(CaptureError, match="under way"):
            record_calls(unet, tmp_path / "run.zarr", lambda: bare_call(unet))
        handle.remove()


class TestFoundAtTheEnd:
    """The recording stops, the model runs on, and the error comes when the block ends."""

    def test_denoiser_that_was_never_called(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match="never called"), record(models.tiny_unet(), tmp_path / "run.zarr"):
            pass
        assert read_manifest(tmp_path / "run.zarr").status == "interrupted"

    def test_steps_that_never_came(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        with pytest.raises(CaptureError, match="none of the 1"):
            record_calls(unet, tmp_path / "run.zarr", lambda: bare_call(unet), steps=[7])

    @pytest.mark.parametrize("allow_gaps", [False, True])
    def test_layer_that_is_missing_in_a_step(self, allow_gaps: bool, tmp_path: Path) -> None:
        unet, path = models.tiny_unet(), tmp_path / "run.zarr"
        calls = [lambda: bare_call(unet), lambda: call_without_middle(unet), lambda: bare_call(unet)]
        arguments = {"allow_gaps": allow_gaps, "encoding": "factors"}
        if allow_gaps:
            record_calls(unet, path, *calls, **arguments)
        else:
            with pytest.raises(CaptureError, match=r"mid_block.*attn2 in call 1.*allow_gaps=True"):
                record_calls(unet, path, *calls, **arguments)
        manifest = read_manifest(path)
        assert (manifest.status, manifest.steps) == ("complete" if allow_gaps else "interrupted", 3)
        for (site, _), scores in read_scores(path).items():
            missing = np.isnan(scores).all(axis=(1, 2, 3))
            assert missing.tolist() == [False, site.startswith("mid_block"), False]

    def test_picture_size_that_changes(self, tmp_path: Path) -> None:
        unet, after = models.tiny_unet(), []
        calls = [lambda: bare_call(unet), lambda: bare_call(unet, keys=20), lambda: bare_call(unet)]
        with pytest.raises(CaptureError, match="keys 16 -> 20"):
            record_calls(unet, tmp_path / "run.zarr", *calls, lambda: after.append("the model ran on"))
        assert after
        manifest = read_manifest(tmp_path / "run.zarr")
        assert (manifest.status, manifest.steps) == ("interrupted", 1)

    def test_site_that_appears_later(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        calls = [lambda: call_without_middle(unet), lambda: bare_call(unet)]
        with pytest.raises(CaptureError, match=r"2 of 8 .*not seen to attend: mid_block.*allow_gaps=True"):
            record_calls(unet, tmp_path / "first.zarr", *calls)
        with pytest.raises(CaptureError, match="not called in the first"):
            record_calls(unet, tmp_path / "second.zarr", *calls, allow_gaps=True)

    def test_exception_of_the_body_passes_unchanged(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        error = RuntimeError("of the user")

        def fail() -> None:
            raise error

        with pytest.raises(RuntimeError) as raised:
            record_calls(unet, tmp_path / "run.zarr", lambda: bare_call(unet), fail, reference=models.picture())
        assert raised.value is error
        manifest = read_manifest(tmp_path / "run.zarr")
        assert (manifest.status, manifest.steps) == ("interrupted", 1)
        assert read_array(tmp_path / "run.zarr", "images/reference").shape == (32, 32, 3)

    def test_limit_that_is_too_small_for_the_estimate(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        expected, found = run(pipeline), []
        with (
            pytest.raises(SizeLimitError, match=r"60\.4 kB.*20 kB"),
            record(pipeline, tmp_path / "run.zarr", limit_bytes=20_000, strict=True),
        ):
            found.append(run(pipeline))
        np.testing.assert_array_equal(found[0], expected)
        manifest = read_manifest(tmp_path / "run.zarr")
        assert (manifest.status, manifest.steps, manifest.classes) == ("interrupted", 0, ())

    def test_limit_that_is_reached_on_the_way(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        recording = record(
            unet, tmp_path / "run.zarr", context="text", encoding="factors", limit_bytes=50_000, strict=True
        )

        def run_on() -> None:
            with recording:
                for _ in range(5):
                    bare_call(unet)

        with pytest.raises(SizeLimitError, match="limit of 50000 bytes in step 3"):
            run_on()
        manifest = read_manifest(tmp_path / "run.zarr")
        assert (manifest.status, manifest.steps) == ("interrupted", 3)
        assert recording.statistics.bytes_written <= 50_000

    def test_a_denoiser_whose_layers_another_method_runs(self, tmp_path: Path) -> None:
        class Wrapped(nn.Module):
            """As the original latent diffusion code: samplers call a method, never `forward`."""

            def __init__(self) -> None:
                super().__init__()
                self.model = models.tiny_unet()

            def apply_model(self) -> None:
                bare_call(self.model)

        wrapped, calls = Wrapped(), []

        def sample() -> None:
            for step in range(4):
                wrapped.apply_model()
                calls.append(step)

        match = r"model\.\S+ attends, but Wrapped is not called.*U-Net.*profile="
        with pytest.raises(CaptureError, match=match), record(wrapped, tmp_path / "run.zarr", context="text"):
            sample()
        assert calls == [0]  # told when the second step begins

    @pytest.mark.parametrize("steps_before", [0, 1])
    def test_calls_from_two_threads(self, steps_before: int, tmp_path: Path) -> None:
        """The second is not recorded, and the first never loses its step without a word."""
        unet, inside, go_on, after = models.tiny_unet(), Event(), Event(), []

        def wait(*_: Any) -> None:
            if current_thread() is not main_thread():
                inside.set()
                go_on.wait(20)

        def overlap() -> None:
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(bare_call, unet)
                inside.wait(20)
                bare_call(unet)
                go_on.set()
                other.result()
            after.append("the model ran on")

        handle = unet.mid_block.register_forward_pre_hook(wait)
        path = tmp_path / "run.zarr"
        with pytest.raises(CaptureError, match="in another thread"):
            record_calls(unet, path, *[lambda: bare_call(unet)] * steps_before, overlap)
        handle.remove()
        assert after
        assert (read_manifest(path).status, read_manifest(path).steps) == ("interrupted", steps_before)
        assert not unet._forward_hooks


class TestWriter:
    def test_disk_that_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write = TraceStore.write

        def write_until_full(self: TraceStore, group: str, name: str, *, step: int, layer: int, values: Any) -> None:
            if step == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(self, group, name, step=step, layer=layer, values=values)

        monkeypatch.setattr(TraceStore, "write", write_until_full)
        pipeline = models.stable_diffusion()
        images = []

        def record_run() -> None:
            with record(pipeline, tmp_path / "run.zarr", strict=True) as recording:
                images.append(run(pipeline))
                recording.images["generated"] = images[0][0]

        with pytest.raises(CaptureError, match=r"No space left.*2 finished steps") as raised:
            record_run()
        assert isinstance(raised.value.__cause__, OSError)
        assert len(images) == 1
        manifest = read_manifest(tmp_path / "run.zarr")
        assert (manifest.status, manifest.steps) == ("interrupted", 2)
        assert all(np.isfinite(scores).all() for scores in read_scores(tmp_path / "run.zarr").values())
        assert read_array(tmp_path / "run.zarr", "images/generated").shape == (16, 16, 3)

    def test_files_that_the_system_refuses(self, tmp_path: Path) -> None:
        """A limit of the operating system on the size of a file stands in for a full disk."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        unet, path = models.tiny_unet(), tmp_path / "run.zarr"

        def call_with_limit() -> None:
            while not (path / "step_done" / "c" / "0").exists():  # the first step is on the disk
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
            unet(torch.randn(1, 4, 8, 8), 5, encoder_hidden_states=torch.randn(1, 16, 32))

        try:
            with pytest.raises(CaptureError, match="could not be written"):
                record_calls(unet, path, lambda: bare_call(unet), call_with_limit)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        np.testing.assert_array_equal(np.flatnonzero(read_array(path, "step_done")), [0])
        assert all(np.isfinite(scores[0]).all() for scores in read_scores(path).values())

    def test_store_that_vanishes(self, tmp_path: Path) -> None:
        unet, path = models.tiny_unet(), tmp_path / "run.zarr"

        def remove() -> None:
            while not (path / "step_done" / "c" / "0").exists():
                time.sleep(0.01)
            shutil.rmtree(path)

        calls = [lambda: bare_call(unet), remove, lambda: bare_call(unet), lambda: bare_call(unet)]
        with pytest.raises(TraceNotFoundError, match="vanished"):
            record_calls(unet, path, *calls)
        assert not (path / "zarr.json").exists()


SCRIPT = """
import os
import sys
import torch
from attrace.analysis.integrity.repair import repair
from attrace.analysis.integrity.verify import verify
from attrace.recorder import Recording, record
from support import models

torch.set_num_threads(1)
for line in sys.stdin:  # a fork for each path: the imports take longer than the rest
    child = os.fork()
    if child == 0:
        models.record_for_long(line.strip())
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_killed_process_leaves_every_finished_step(tmp_path: Path) -> None:
    models.record_for_long(tmp_path / "whole.zarr")
    truth = read_scores(tmp_path / "whole.zarr")
    random_times = random.Random(0)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = []
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for attempt in range(4):
            path = tmp_path / f"{attempt}.zarr"
            print(path, file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            while not (path / "step_done" / "c").exists():
                time.sleep(0.01)
            time.sleep(random_times.uniform(0, 0.4))
            os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "ended\n"
            found.append(path)
        parent.stdin.close()
    for path in found:
        assert read_manifest(path).status == "recording"
        done = np.flatnonzero(read_array(path, "step_done"))
        assert 0 < len(done) < models.LONG
        np.testing.assert_array_equal(done, np.arange(len(done)))
        for site, scores in read_scores(path).items():  # zarr checks the checksum of every chunk that it reads
            np.testing.assert_array_equal(scores, truth[site][: len(done)])
        assert repair(path) == len(done)
        assert verify(path).issues == ()
