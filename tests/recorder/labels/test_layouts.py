"""Token layouts that are easy to mistake: shifted ids, layers, masks, joined and replaced keys, one sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionInpaintPipeline, ZImageTransformer2DModel
from support import models, transformers
from support.reading import read_manifest
from torch import Tensor, nn

from attrace.recorder import LabelWarning, Profile, record
from attrace.recorder.capture.sites import Candidate, QueryGrids
from attrace.recorder.labels.joint import LayoutReader
from attrace.schemas import CaptureError

Places = list[tuple[float, float, float]]


def grid(rows: int, columns: int, *, number: float = 0, row: float = 0, column: float = 0, step: float = 1) -> Places:
    return [(number, row + step * r, column + step * c) for r in range(rows) for c in range(columns)]


def pictures(places: Places, **arguments: Any) -> list[tuple[str, Any, bool]]:
    given = {"encoder_hidden_states": torch.zeros(1, 3, 8), "img_ids": torch.tensor(places)} | arguments
    layout = LayoutReader(1, "text-first").read(given)
    assert layout is not None
    assert layout.segments[0].context == "text"
    return [(one.context, one.grid, one.guess is not None) for one in layout.segments[1:]]


class TestPositionIds:
    @pytest.mark.parametrize(
        "shift",
        [
            {"row": 64},  # EasyControl
            {"row": 4, "column": 6},  # DreamO: diagonally, with no gap in rows
            {"column": 6},
            {"column": 64},
            {},  # the same places again
            {"number": 1},
            {"step": 2},
        ],
    )
    def test_a_shifted_picture_is_a_reference(self, shift: dict[str, float]) -> None:
        found = pictures(grid(4, 6) + grid(3, 5, **shift))
        assert found == [("self", (4, 6), False), ("reference", (3, 5), False)]

    def test_what_is_given_apart_is_a_reference_though_its_rows_go_on(self) -> None:
        places = grid(4, 6) + grid(4, 6, row=4)  # EasyControl at the size that its shift is of
        assert pictures(places, hidden_states=torch.zeros(1, 24, 8)) == [
            ("self", (4, 6), False),
            ("reference", (4, 6), False),
        ]

    def test_several_references(self) -> None:
        places = grid(4, 6) + grid(2, 2, row=4, column=6) + grid(3, 2, row=6, column=8)
        assert [found[1] for found in pictures(places)] == [(4, 6), (2, 2), (3, 2)]

    def test_places_in_no_order_are_one_picture_and_a_guess(self) -> None:
        places = grid(4, 6)
        order = torch.randperm(24, generator=models.noise()).tolist()
        assert pictures([places[token] for token in order]) == [("self", None, True)]


def test_a_guess_is_told_though_its_segment_is_not_recorded(tmp_path: Path) -> None:
    denoiser = transformers.flux_transformer()
    call = transformers.flux_call(4, 6)
    order = torch.randperm(24, generator=models.noise())
    reference = torch.tensor([[1.0, row, column] for row in range(2) for column in range(3)])
    call["img_ids"] = torch.cat([call["img_ids"], reference[torch.tensor([0, 3, 1, 4, 2, 5])]])
    call["hidden_states"] = torch.randn(1, len(order) + 6, 16, generator=models.noise())
    with (
        torch.no_grad(),
        pytest.warns(LabelWarning, match="on what grid 6 tokens"),
        record(denoiser, tmp_path / "run.zarr", context="text"),
    ):
        denoiser(**call)
    assert {one.context for one in read_manifest(tmp_path / "run.zarr").classes} == {"text"}


class TestLayers:
    """Qwen-Image-Layered generates the picture and its layers together; only the last picture is given."""

    SHAPES = ((1, 2, 3),) * 3 + ((1, 4, 2),)

    def record(self, path: Path, profile: str | None, **config: Any) -> Any:
        made = transformers.qwen_image_edit().transformer
        given = {name: value for name, value in made.config.items() if not name.startswith("_")}
        denoiser = type(made)(**(given | config)).eval()
        tokens = sum(frames * rows * columns for frames, rows, columns in self.SHAPES)
        with torch.no_grad(), record(denoiser, path, profile=profile):
            denoiser(
                hidden_states=torch.randn(1, tokens, 16),
                encoder_hidden_states=torch.randn(1, 5, 16),
                encoder_hidden_states_mask=torch.ones(1, 5, dtype=torch.long),
                timestep=torch.tensor([0.5]),
                img_shapes=[list(self.SHAPES)],
                return_dict=False,
            )
        (one,) = read_manifest(path).classes
        return one

    @pytest.mark.parametrize(("profile", "config"), [("qwen-image-layered", {}), (None, {"use_layer3d_rope": True})])
    def test_all_pictures_but_the_last_are_generated(
        self, profile: str | None, config: dict[str, Any], tmp_path: Path
    ) -> None:
        one = self.record(tmp_path / "run.zarr", profile, **config)
        assert (one.context, one.query_grid) == ("reference", (6, 3))
        assert [part.grid for part in one.key_segments] == [(4, 2)]

    def test_elsewhere_the_first_alone_is(self, tmp_path: Path) -> None:
        one = self.record(tmp_path / "run.zarr", "qwen-image-edit")
        assert (one.query_grid, [part.grid for part in one.key_segments]) == ((2, 3), [(2, 3), (2, 3), (4, 2)])


def test_a_mask_is_no_picture() -> None:
    module = nn.Module()
    module.to_q = module.to_k = nn.Linear(2, 2)
    module.forward = lambda *_, **__: None
    candidate = Candidate("", module, module.to_q, module.to_k, heads=1)
    grids = QueryGrids(module, [candidate])
    grids.attach()
    latent = torch.zeros(1, 4, 2, 8)
    for args, kwargs in (
        ((torch.zeros(1, 1, 1, 16), latent), {}),
        ((torch.zeros(1, 1, 16, 16, dtype=torch.bool), latent), {}),
        ((latent,), {"attention_mask": torch.zeros(1, 1, 4, 4)}),
    ):
        module(*args, **kwargs)
        assert grids.of("", 16) == (2, 8)
        assert set(grids.possible("")) == {(2, 8), (1, 4)}
    grids.detach()


class Joins:
    """Self-attention to a garment's features too, which lie beside the picture's own in one sequence or in the keys."""

    def __init__(self, joins: str) -> None:
        self.joins = joins

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        tokens, garment = hidden_states.shape[1], hidden_states.flip(1) * 0.5
        both = torch.cat([hidden_states, garment], 1)
        query = attn.to_q(both if self.joins == "whole" else hidden_states)
        key = {"whole": both, "input": both, "projected": hidden_states, "replaced": garment}[self.joins]
        key, value = attn.to_k(key), attn.to_v(garment if self.joins == "replaced" else both)
        if self.joins == "projected":
            key = torch.cat([key, attn.to_k(garment)], 1)
        query, key, value = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[0](output[:, :tokens])
        return projected


def garment_pipeline(joins: str) -> Any:
    """An inpainting pipeline by its name, as IDM-VTON's is."""
    pipeline = models.inpainting()
    assert isinstance(pipeline, StableDiffusionInpaintPipeline)
    processors = {
        path: Joins(joins) for path in pipeline.unet.attn_processors if "mid_block" in path and "attn1" in path
    }
    pipeline.unet.set_attn_processor(dict(pipeline.unet.attn_processors) | processors)
    return pipeline


def run(pipeline: Any) -> None:
    pipeline(
        "a cat",
        image=models.picture(24, 24),
        mask_image=models.box_mask(24, 24),
        height=24,
        width=24,
        num_inference_steps=2,
        generator=models.noise(),
    )


@pytest.mark.parametrize("capture", ["auto", "attention"])
@pytest.mark.parametrize("joins", ["whole", "input", "projected"])
def test_a_garment_is_found_whatever_the_pipeline_is_called(joins: str, capture: Any, tmp_path: Path) -> None:
    pipeline = garment_pipeline(joins)
    with (
        pytest.warns(LabelWarning, match="joined to self-attention"),
        record(pipeline, tmp_path / "run.zarr", capture=capture),
    ):
        run(pipeline)
    manifest = read_manifest(tmp_path / "run.zarr")
    assert (manifest.status, manifest.steps, manifest.capture["profile"]) == ("complete", 2, "inpainting")
    (one,) = (one for one in manifest.classes if one.context == "reference")
    assert [site.path for site in one.sites] == ["mid_block.attentions.0.transformer_blocks.0.attn1"]
    assert one.has_lse
    assert [part.grid for part in one.key_segments] == [one.query_grid]


def test_keys_of_another_picture_are_not_taken_for_text(tmp_path: Path) -> None:
    pipeline = garment_pipeline("replaced")
    with (
        pytest.raises(CaptureError, match=r"attn1 attends to 36 keys.*'replaced'"),
        record(pipeline, tmp_path / "a.zarr"),
    ):
        run(pipeline)


class OneSequence(nn.Module):
    """Text and picture in one self-attention, with no added projections, as in CogView4 and Lumina 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = 2
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            one(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.to_q, self.to_k, self.to_v)
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Joint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = OneSequence()

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor) -> Tensor:  # noqa: ARG002
        picture = hidden_states.flatten(2).transpose(1, 2)
        output: Tensor = self.attn(torch.cat([encoder_hidden_states, picture], 1))
        return output


@pytest.mark.parametrize("self_attention", [False, True])
def test_text_and_picture_in_one_sequence_need_a_profile(self_attention: bool, tmp_path: Path) -> None:
    denoiser, given = Joint(), (torch.randn(1, 8, 3, 4), torch.randn(1, 5, 8), torch.tensor(1.0))
    with (
        pytest.raises(CaptureError, match=r"17 tokens, 5 of them of the text.*profile= with joint='text-first'"),
        record(denoiser, tmp_path / "run.zarr", context="text", self_attention=self_attention),
    ):
        denoiser(*given)
    with record(denoiser, tmp_path / "mine.zarr", profile=Profile("mine", joint="text-first")):
        denoiser(*given)
    (one,) = read_manifest(tmp_path / "mine.zarr").classes
    assert (one.context, one.keys, one.query_grid) == ("text", 5, (3, 4))


@pytest.mark.parametrize("layers", [None, "noise_refiner*", "context_refiner*", "layers*"])
def test_texts_and_pictures_in_lists(layers: str | None, tmp_path: Path) -> None:
    """Z-Image: layers of the picture alone, of the text alone, and of both, none of which says what its tokens are."""
    model = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 64, 64],
    ).eval()

    def run() -> None:
        with record(model, tmp_path / "run.zarr", self_attention=True, layers=layers, context="text"), torch.no_grad():
            model([torch.ones(4, 1, 16, 16)], torch.tensor([0.5]), [torch.ones(5, 8)])

    if layers == "noise_refiner*":
        run()
        assert [one.context for one in read_manifest(tmp_path / "run.zarr").classes] == ["self"]
        return
    with pytest.raises(CaptureError, match="given as lists: which of them are text is not known"):
        run()
