from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from attrace.demo.data import SIZE, SampleMaker
from attrace.demo.pictures import load_pictures
from attrace.demo.pipeline import ReferenceInpaintPipeline, build_pipeline


@pytest.fixture
def pipeline() -> ReferenceInpaintPipeline:
    torch.manual_seed(0)
    untrained = build_pipeline((16, 16), token_channels=16)
    untrained.set_progress_bar_config(disable=True)
    return untrained


def paint(pipeline: ReferenceInpaintPipeline, **options: object) -> torch.Tensor:
    samples = SampleMaker(0).make(2)
    output = pipeline(
        samples.masked_scene,
        samples.mask,
        samples.reference,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **options,  # type: ignore[arg-type]
    )
    return output.images  # type: ignore[no-any-return]


def test_only_the_mask_is_painted(pipeline: ReferenceInpaintPipeline) -> None:
    samples, painted = SampleMaker(0).make(2), paint(pipeline)
    outside = samples.mask.expand(-1, 3, -1, -1) == 0
    assert torch.equal(painted[outside], samples.masked_scene[outside])
    assert painted[~outside].std() > 0


def test_guidance_is_a_batch_of_an_empty_and_the_given_reference(pipeline: ReferenceInpaintPipeline) -> None:
    seen = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    guided = paint(pipeline, guidance_scale=2.0)
    hook.remove()
    assert seen[0].shape[0] == 4
    assert not seen[0][:2].any()
    assert not torch.equal(guided, paint(pipeline))


def test_it_survives_save_and_load(pipeline: ReferenceInpaintPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = ReferenceInpaintPipeline.from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(paint(loaded), paint(pipeline))


def test_pictures_and_their_pipeline_output(pipeline: ReferenceInpaintPipeline) -> None:
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
