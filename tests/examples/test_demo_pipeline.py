from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from attrace.analysis import correspondence, open_trace
from attrace.demo.data import SIZE, SampleMaker
from attrace.demo.evaluate import true_places
from attrace.demo.joint import build_joint_pipeline
from attrace.demo.pictures import load_pictures
from attrace.demo.pipeline import InpaintPipeline, build_pipeline
from attrace.demo.placement import frame_placement, mask_box
from attrace.demo.run import load_pipeline
from attrace.recorder import record


@pytest.fixture(params=["unet", "joint"])
def pipeline(request: pytest.FixtureRequest) -> InpaintPipeline:
    torch.manual_seed(0)
    untrained: InpaintPipeline
    if request.param == "unet":
        untrained = build_pipeline((16, 16), token_channels=16)
    else:
        untrained = build_joint_pipeline(layers=(1, 1), heads=2, head_channels=16, size=SIZE)
    untrained.set_progress_bar_config(disable=True)
    return untrained


def paint(pipeline: InpaintPipeline, **options: Any) -> torch.Tensor:
    samples = SampleMaker(0).make(2)
    output = pipeline(
        samples.masked_scene,
        samples.mask,
        samples.reference,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **options,
    )
    return output.images  # type: ignore[no-any-return]


def test_only_the_mask_is_painted(pipeline: InpaintPipeline) -> None:
    samples, painted = SampleMaker(0).make(2), paint(pipeline)
    outside = samples.mask.expand(-1, 3, -1, -1) == 0
    assert torch.equal(painted[outside], samples.masked_scene[outside])
    assert painted[~outside].std() > 0


def test_the_reference_lies_on_the_box_of_the_mask_unless_a_placement_is_given(pipeline: InpaintPipeline) -> None:
    box = mask_box(SampleMaker(0).make(2).mask)
    default = paint(pipeline)
    assert torch.equal(paint(pipeline, placement=frame_placement(box, SIZE)), default)
    assert not torch.equal(paint(pipeline, placement=frame_placement(box, SIZE, mirrored=True)), default)


def test_guidance_is_a_batch_of_an_empty_and_the_given_reference(
    pipeline: InpaintPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    predict = type(pipeline).predict

    def watched(self: InpaintPipeline, *inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs[3])
        return predict(self, *inputs)

    monkeypatch.setattr(type(pipeline), "predict", watched)
    guided = paint(pipeline, guidance_scale=2.0)
    assert seen[0].shape[0] == 4
    assert not seen[0][:2].any()
    assert seen[0][2:].any()
    assert not torch.equal(guided, paint(pipeline))


def test_it_survives_save_and_load(pipeline: InpaintPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert type(loaded) is type(pipeline)
    assert torch.equal(paint(loaded), paint(pipeline))


def test_a_joint_recording_has_a_grid_of_the_scene_and_one_of_the_reference(tmp_path: Path) -> None:
    """With the labels of its profile: the reference is no text, and the empty reference of guidance is left out."""
    torch.manual_seed(0)
    pipeline = build_joint_pipeline(layers=(1, 1), heads=2, head_channels=16, size=SIZE)
    pipeline.set_progress_bar_config(disable=True)
    paths = [tmp_path / f"{number}.zarr" for number in range(2)]
    with record(pipeline, paths):
        paint(pipeline, guidance_scale=2.0)
    (recorded,) = open_trace(paths[1]).classes
    site_class = recorded.site_class
    assert (site_class.context, site_class.branch) == ("reference", "conditional")
    assert site_class.query_grid == (16, 16)
    assert [(segment.kind, segment.grid) for segment in site_class.key_segments] == [("patch", (16, 16))]
    assert len(site_class.sites) == 2


def test_joint_attention_starts_where_positions_are_alike(tmp_path: Path) -> None:
    """Untrained, every layer looks near the true position: without, training takes long to find it."""
    torch.manual_seed(0)
    pipeline, samples = build_joint_pipeline(size=SIZE), SampleMaker(0).make(1)
    pipeline.set_progress_bar_config(disable=True)
    with record(pipeline, tmp_path / "run.zarr"):
        pipeline(samples.masked_scene, samples.mask, samples.reference, num_inference_steps=1)
    trace = open_trace(tmp_path / "run.zarr")
    truth = true_places(samples, (16, 16), (16, 16))[0].numpy()
    found = correspondence(trace).values
    assert found.shape == (5, 16, 16, 2)
    errors = np.linalg.norm(found - truth, axis=-1).reshape(5, -1)
    assert (np.nanmedian(errors, axis=1) < 1).all()


def test_pictures_and_their_pipeline_output(pipeline: InpaintPipeline) -> None:
    pictures = load_pictures()
    image = pipeline(pictures.scene, pictures.mask, pictures.reference, num_inference_steps=1).images[0]
    outside = np.asarray(pictures.mask) == 0
    assert image.size == (SIZE, SIZE)
    assert np.array_equal(np.asarray(image)[outside], np.asarray(pictures.scene)[outside])
    assert np.array_equal(np.asarray(pictures.truth)[outside], np.asarray(pictures.scene)[outside])


def test_a_picture_of_any_shape_can_be_the_reference(tmp_path: Path) -> None:
    PIL.Image.new("RGBA", (200, 90), (255, 0, 0, 255)).save(tmp_path / "wide.png")
    reference = load_pictures(tmp_path / "wide.png").reference
    assert reference.size == (SIZE, SIZE)
    assert reference.getpixel((3, 3)) == (255, 0, 0)
