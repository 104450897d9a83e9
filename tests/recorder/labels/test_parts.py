"""The small decisions, one by one: branches, labels, encodings, grids, selections, pictures, copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attrace.recorder.capture.host_copies import HostCopier, HostCopy
from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.sites import Candidate, QueryGrids, argument_reader, timestep_of
from attrace.recorder.labels.call import PipelineCall, read_call
from attrace.recorder.labels.guidance import BatchLayout, batch_layout, kept_branches
from attrace.recorder.labels.keys import KeyLabels, label_keys
from attrace.recorder.labels.profile import KeyContext, Profile, find_profile, guess_profile, named_profile
from attrace.recorder.session.select import select_steps
from attrace.recorder.writing.encode import SiteShape, encode
from attrace.recorder.writing.images import Images
from attrace.recorder.writing.plan import SeenSite, plan_groups
from attrace.schemas import InputError, KeySegment

KNOWN = named_profile("stable-diffusion")
UNKNOWN = guess_profile(object(), "reference")


class TestGuidance:
    @pytest.mark.parametrize(
        ("rows", "samples", "profile", "guided", "branches"),
        [
            (2, 1, KNOWN, True, ("unconditional", "conditional")),
            (3, 3, KNOWN, False, ("conditional",)),
            (4, 2, KNOWN, None, ("unconditional", "conditional")),
            (1, 1, UNKNOWN, None, ("conditional",)),
            (6, 2, named_profile("instruct-pix2pix"), True, ("conditional", "image", "unconditional")),
        ],
    )
    def test_blocks_are_named(
        self, rows: int, samples: int, profile: Profile, guided: bool | None, branches: tuple[str, ...]
    ) -> None:
        layout = batch_layout(rows, samples, named=None, profile=profile, call=PipelineCall(guided=guided))
        assert layout == BatchLayout(branches, samples)

    def test_blocks_of_an_unknown_pipeline_are_a_guess(self) -> None:
        layout = batch_layout(2, 1, named=None, profile=UNKNOWN, call=PipelineCall(guided=True))
        assert layout.guess is not None
        assert "guidance=" in layout.guess

    @pytest.mark.parametrize(
        ("rows", "samples", "profile", "guided"),
        [(3, 1, KNOWN, True), (2, 1, KNOWN, False), (3, 2, KNOWN, None), (2, 1, UNKNOWN, None), (1, 2, KNOWN, None)],
    )
    def test_what_does_not_divide_is_refused(
        self, rows: int, samples: int, profile: Profile, guided: bool | None
    ) -> None:
        with pytest.raises(InputError, match=f"batch of {rows}.*pass"):
            batch_layout(rows, samples, named=None, profile=profile, call=PipelineCall(guided=guided))

    def test_rows_and_kept_branches(self) -> None:
        layout = BatchLayout(("a", "b", "c"), 4)
        assert layout.rows("b") == slice(4, 8)
        assert kept_branches("both", layout) == ("a", "b", "c")
        assert kept_branches(["c", "a"], layout) == ("a", "c")


class TestCall:
    class Pipeline:
        scheduler: Any = None

        def __init__(self, guided: bool | None = None) -> None:
            if guided is not None:
                self.do_classifier_free_guidance = guided

        def __call__(self, read: Any, prompt: str, image: Any, guidance_scale: float = 3.0) -> PipelineCall:
            timesteps = [len(prompt), image, guidance_scale]
            call: PipelineCall = read(self)
            assert call.denoiser_calls in (None, len(timesteps))
            return call

    def test_arguments_are_read_from_the_stack(self) -> None:
        call = self.Pipeline()(read_call, "a cat", image=torch.zeros(1))
        assert call.arguments == {"prompt": "a cat", "guidance_scale": 3.0}
        assert (call.guided, call.denoiser_calls, call.guidance_scale) == (True, 3, 3.0)
        assert call.without_prompts().arguments == {"guidance_scale": 3.0}

    def test_the_pipelines_own_word_counts(self) -> None:
        assert self.Pipeline(guided=False)(read_call, "a cat", image=None).guided is False

    def test_another_pipelines_call_is_not_read(self) -> None:
        other = self.Pipeline()
        assert self.Pipeline()(lambda _: read_call(other), "a cat", image=None) == PipelineCall()


class TestKeys:
    @pytest.mark.parametrize(
        ("keys", "rule", "parts", "guessed"),
        [
            (1, "patches", [("cls", None)], False),
            (256, "patches", [("patch", (16, 16))], False),
            (257, "patches", [("cls", None), ("patch", (16, 16))], False),
            (257, "guess", [("cls", None), ("patch", (16, 16))], True),
            (12, "guess", [("other", None)], True),
            (4, "class-and-patches", [("other", None)], False),
            (16, "class-and-patches", [("other", None)], False),
            (257, "class-and-patches", [("cls", None), ("patch", (16, 16))], False),
            (12, "query-grid", [("patch", (3, 4))], False),
            (77, "text", [("text", None)], False),
        ],
    )
    def test_kinds_and_grids(self, keys: int, rule: Any, parts: list[Any], guessed: bool) -> None:
        profile = Profile("made", (KeyContext("reference", rule),))
        labels = label_keys("site", keys, profile=profile, query_grid=(3, 4))
        assert [(part.kind, part.grid) for part in labels.segments] == parts
        assert sum(part.count for part in labels.segments) == keys
        assert (labels.guess is not None) == guessed

    def test_a_given_grid_is_no_guess(self) -> None:
        labels = label_keys("site", 13, profile=UNKNOWN, key_grid=(3, 4))
        assert [part.grid for part in labels.segments] == [None, (3, 4)]
        assert labels.guess is None

    def test_a_subclass_has_its_parents_profile(self) -> None:
        parent = type("PaintByExamplePipeline", (), {})
        assert find_profile(type("Mine", (parent,), {})()) is named_profile("paint-by-example")
        assert find_profile(object()) is None


class TestEncode:
    def projections(self, dtype: torch.dtype = torch.float32, **members: Any) -> Projections:
        random = torch.Generator().manual_seed(0)
        query, key = torch.randn(2, 3, 8, 5, generator=random), torch.randn(2, 3, 4, 5, generator=random)
        return Projections(query.to(dtype), key.to(dtype), 0.25, members.get("mask"), is_self=False)

    @pytest.mark.parametrize(
        ("dtype", "factors", "scores"),
        [
            (torch.float16, "float16", "float32"),
            (torch.bfloat16, "float32", "float32"),
            (torch.float32, "float32", "float32"),
            (torch.float64, "float64", "float64"),
        ],
    )
    def test_types(self, dtype: torch.dtype, factors: str, scores: str) -> None:
        given = self.projections(dtype)
        assert encode(given.of_rows(slice(1, 2)), "factors", None).shape.dtype == factors
        encoded = encode(given.of_rows(slice(1, 2)), "scores", None)
        assert encoded.shape.dtype == str(encoded.parts["scores"].dtype).removeprefix("torch.") == scores
        truth = 0.25 * given.query[1:].double() @ given.key[1:].double().transpose(-1, -2)
        torch.testing.assert_close(encoded.parts["scores"].double(), truth, rtol=0, atol=1e-6)

    def test_scores_of_half_precision_do_not_overflow(self) -> None:
        large = torch.full((1, 1, 2, 4), 300.0, dtype=torch.float16)
        encoded = encode(Projections(large, large, 1.0, None, is_self=False).of_rows(slice(0, 1)), "scores", None)
        assert encoded.parts["scores"].unique().tolist() == [360_000.0]

    def test_neither_autocast_nor_low_precision_products_touch_the_scores(self) -> None:
        given = self.projections()
        expected = encode(given.of_rows(slice(0, 1)), "scores", None).parts["scores"]
        precision = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = encode(given.of_rows(slice(0, 1)), "scores", None).parts["scores"]
        finally:
            torch.set_float32_matmul_precision(precision)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("keys", "steps", "encoding"), [(4, 10, "scores"), (7, 10, "factors"), (6, 1, "scores")])
    def test_auto_counts_the_bytes_of_the_whole_run(self, keys: int, steps: int, encoding: str) -> None:
        given = Projections(torch.ones(1, 3, 8, 5), torch.ones(1, 3, keys, 5), 1.0, None, is_self=False)
        sizes = {"scores": 8 * keys * steps, "factors": 5 * (8 * steps + keys)}
        assert min(sizes, key=lambda name: sizes[name]) == encoding
        encoded = encode(given.of_rows(slice(0, 1)), "auto", steps)
        assert encoded.shape.encoding == encoding

    def test_masks_that_repeat_over_heads_and_queries_are_masks_of_keys(self) -> None:
        mask = torch.tensor([True, False, True, True])[None, None, None].repeat(2, 3, 8, 1)
        encoded = encode(self.projections(mask=mask).of_rows(slice(0, 2)), "factors", None)
        assert encoded.shape.has_bias
        assert encoded.parts["bias"].tolist() == [[0, -np.inf, 0, 0]] * 2
        mask[1, 2, 3, 0] = False
        assert encode(self.projections(mask=mask).of_rows(slice(0, 1)), "factors", 1000).shape.has_bias  # the other row
        changed = encode(self.projections(mask=mask).of_rows(slice(1, 2)), "auto", 1000)
        assert (changed.shape.encoding, changed.shape.has_bias) == ("scores", False)
        assert changed.parts["scores"][0, 2, 3].tolist()[:2] == [-np.inf, -np.inf]


class TestPlan:
    def site(self, path: str, **members: Any) -> SeenSite:
        shape: dict[str, Any] = {"heads": 2, "queries": 4, "keys": 9, "features": 8, "scale": 0.5, "dtype": "float16"}
        shape |= {name: members.pop(name) for name in list(members) if name in shape}
        labels = KeyLabels("reference", (KeySegment(kind="patch", count=9, grid=(3, 3)),))
        given: dict[str, Any] = {"branch": "conditional", "order": 0, "module": "A", "query_grid": (2, 2)}
        whole = SiteShape(**shape, encoding="factors", has_bias=False)
        return SeenSite(path, shape=whole, labels=labels, **(given | members))

    def test_what_differs_in_anything_is_apart(self) -> None:
        sites = [self.site("a"), self.site("b"), self.site("c", scale=0.7), self.site("d", query_grid=(1, 4))]
        sites += [self.site("e", branch="unconditional"), self.site("f", dtype="float32"), self.site("g")]
        plan = plan_groups(sites)
        assert {group: [site.path for site in members] for group, members in plan.groups.items()} == {
            "reference/4x9h2d8": ["a", "b", "g"],
            "reference/4x9h2d8-2": ["c"],
            "reference/4x9h2d8-3": ["d"],
            "reference.unconditional/4x9h2d8": ["e"],
            "reference/4x9h2d8-4": ["f"],
        }
        place = plan.places()["g", "conditional", "reference"]
        assert (place.group, place.layer) == ("reference/4x9h2d8", 2)

    def test_estimate(self) -> None:
        plan = plan_groups([self.site("a"), self.site("b")])
        assert plan.estimated_bytes(5) == 2 * (5 * 2 * 4 * 8 * 2 + 2 * 9 * 8 * 2)


class TestQueryGrids:
    def grid(self, picture: Tensor, queries: int) -> tuple[int, int] | None:
        class Site(nn.Module):
            def forward(self, hidden: Tensor) -> None:
                found.append(grids.of("block.site", hidden.shape[1]))

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.site = Site()

            def forward(self, _picture: Tensor, hidden: Tensor) -> None:
                self.site(hidden)

        class Root(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = Block()

            def forward(self, _picture: Tensor, inner: Tensor, hidden: Tensor) -> None:
                self.block(inner, hidden=hidden)

        root, found = Root(), list[tuple[int, int] | None]()
        site = root.block.site
        grids = QueryGrids(root, [Candidate("block.site", site, site, site, 1)])
        grids.attach()
        root(torch.zeros(1, 4, 10, 6), picture, torch.zeros(1, queries, 3))
        grids.detach()
        assert not any(module._forward_pre_hooks for module in root.modules())
        return found[0]

    def test_of_the_nearest_picture_that_fits(self) -> None:
        assert self.grid(torch.zeros(1, 4, 4, 6), 24) == (4, 6)
        assert self.grid(torch.zeros(1, 4, 4, 6), 6) == (2, 3)
        assert self.grid(torch.zeros(1, 4, 4, 6), 60) == (10, 6)
        assert self.grid(torch.zeros(1, 4, 4, 6), 15) == (5, 3)
        assert self.grid(torch.zeros(1, 4, 4, 6), 7) is None


def test_steps_are_selected_by_call_number() -> None:
    assert [call for call in range(12) if call in select_steps(slice(2, 9, 3))] == [2, 5, 8]
    assert [call for call in range(12) if call in select_steps(slice(10, None))] == [10, 11]
    assert [call for call in range(12) if call in select_steps(iter([3, 1]))] == [1, 3]
    assert select_steps(slice(2, 9, 3)).count(6) == 2
    assert select_steps(None).count(6) == 6


def test_timesteps_are_found_by_the_names_of_the_forwards_arguments() -> None:
    class Made(nn.Module):
        def forward(self, sample: Any, t: Any = None, other: Any = None) -> None:
            pass

    read = argument_reader(Made())
    assert timestep_of(read((0, 7), {})) == 7
    assert timestep_of(read((0,), {"t": 8})) == 8
    assert np.isnan(timestep_of(read((0,), {})))
    assert np.isnan(timestep_of(read((0, 1, 2, 3, 4), {})))


class TestImages:
    def test_one_for_all_samples_or_one_for_each(self) -> None:
        images = Images(2)
        first, second = np.zeros((2, 3), np.uint8), np.ones((2, 3), np.uint8)
        images["generated"] = [first, second]
        images["reference"] = first
        np.testing.assert_array_equal(images.of(1)["generated"], second)
        np.testing.assert_array_equal(images.of(1)["reference"], first)
        assert set(images) == {"generated", "reference"}
        del images["reference"]
        assert len(images) == 1
        with pytest.raises(InputError, match="3 pictures for 2 samples"):
            images["generated"] = [first] * 3

    def test_several_references_of_one_sample(self) -> None:
        first, second = np.zeros((2, 3), np.uint8), np.ones((4, 3), np.uint8)
        images = Images()
        images["reference"] = [first, second]
        assert set(images) == {"reference", "reference-1"}
        np.testing.assert_array_equal(images.of(0)["reference"], first)
        np.testing.assert_array_equal(images.of(0)["reference-1"], second)
        with pytest.raises(InputError, match="2 pictures for 1 samples"):
            images["generated"] = [first, second]

    @pytest.mark.parametrize("name", ["", "a/b", "..", "__x"])
    def test_names_that_are_no_names(self, name: str) -> None:
        with pytest.raises(InputError, match="plain name"):
            Images()[name] = np.zeros((2, 2), np.uint8)

    def test_a_mask_has_no_colours(self) -> None:
        images = Images()
        images["mask"] = np.ones((2, 3, 1), bool)
        assert images["mask"][0].shape == (2, 3)
        with pytest.raises(InputError, match="'mask'"):
            images["mask"] = np.zeros((2, 3, 3), np.uint8)


class TestHostCopy:
    def test_a_copy_shares_no_memory_and_holds_no_other_rows(self) -> None:
        batch = torch.arange(24.0).reshape(4, 3, 2).transpose(1, 2)
        copy = HostCopier()(batch[2:])
        expected = batch[2:].numpy().copy()
        batch.zero_()
        np.testing.assert_array_equal(copy.numpy(), expected)
        assert copy.numpy().flags.c_contiguous
        assert copy.nbytes == copy.tensor.untyped_storage().nbytes() == 48

    def test_values_are_only_read_after_the_copy_is_done(self) -> None:
        tensor = torch.zeros(2, dtype=torch.bfloat16)

        class Event:
            def synchronize(self) -> None:
                tensor.fill_(1.5)

        values = HostCopy(tensor, Event()).numpy()  # type: ignore[arg-type]
        assert values.dtype == np.float32
        assert values.tolist() == [1.5, 1.5]

    def test_only_the_reader_of_a_copy_waits_for_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is asked of the device, and in which order, by stand-ins for its streams."""
        log: list[str] = []

        class Stream:
            def __init__(self, name: str) -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                log.append(f"{self.name} waits for {other.name}")

        class Event:
            def __init__(self, *, blocking: bool) -> None:
                assert blocking

            def record(self, stream: Stream) -> None:
                log.append(f"event on {stream.name}")

            def synchronize(self) -> None:
                log.append("reader waits")

        class Snapshot(torch.Tensor):
            def record_stream(self, stream: Any) -> None:
                log.append(f"memory kept for {stream.name}")

        @contextmanager
        def on(stream: Stream) -> Iterator[None]:
            log.append(f"on {stream.name}")
            yield
            log.append(f"off {stream.name}")

        empty = torch.empty

        def pinned(*shape: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
            assert pin_memory
            log.append("pinned")
            return empty(*shape, **options)

        monkeypatch.setattr(torch, "empty", pinned)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _device: Stream("side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Stream("model"))
        monkeypatch.setattr(torch.cuda, "stream", on)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        copy = HostCopier()._from_cuda(torch.arange(6.0).as_subclass(Snapshot))
        made = ["side waits for model", "on side", "pinned", "event on side", "off side", "memory kept for side"]
        assert log == made
        assert copy.numpy().tolist() == [0, 1, 2, 3, 4, 5]
        assert log == [*made, "reader waits"]

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_from_a_device_while_the_model_goes_on(self) -> None:
        batch = torch.randn(64, 256, 256, device="cuda")
        expected = batch.cpu().numpy()
        copy = HostCopier()(batch)
        batch.zero_()
        assert copy.tensor.is_pinned()
        np.testing.assert_array_equal(copy.numpy(), expected)
