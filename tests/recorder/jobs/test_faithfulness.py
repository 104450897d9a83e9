"""Hidden patches: the picture they leave, and the model run again with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
from support.models import box_mask, demo, picture

from attrace.demo.data import SampleMaker
from attrace.demo.run import load_pipeline
from attrace.recorder.jobs.faithfulness import Fill, hide, regenerate
from attrace.schemas import InputError


def cells(rows: int, columns: int, *chosen: tuple[int, int]) -> Any:
    found = np.zeros((rows, columns), bool)
    for place in chosen:
        found[place] = True
    return found


def test_hidden_patches_show_the_mean_colour() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2, :3] = (100, 200, 40)
    hidden = np.asarray(hide(PIL.Image.fromarray(pixels), cells(2, 2, (0, 0))))
    assert (hidden[:2, :3] == (25, 50, 10)).all()
    assert np.array_equal(hidden[2:], pixels[2:])
    assert np.array_equal(hidden[:, 3:], pixels[:, 3:])


def test_hidden_patches_change_places() -> None:
    pixels = np.arange(4, dtype=np.uint8).reshape(2, 2).repeat(3, axis=0).repeat(3, axis=1)
    hidden = np.asarray(hide(PIL.Image.fromarray(pixels), cells(2, 2, (0, 0), (0, 1), (1, 1)), "swap"))
    assert hidden[::3, ::3].tolist() == [[1, 3], [2, 0]]


def test_hidden_patches_are_blurred() -> None:
    whole = picture(seed=2)
    hidden = hide(whole, cells(4, 4, (1, 2)), "blur")
    changed = (np.asarray(hidden) != np.asarray(whole)).any(axis=2)
    rows, columns = whole.height // 4, whole.width // 4
    inside = changed[rows : 2 * rows, 2 * columns : 3 * columns]
    assert inside.mean() > 0.9
    assert inside.sum() == changed.sum()
    assert np.asarray(hidden)[rows : 2 * rows, 2 * columns : 3 * columns].std() < np.asarray(whole).std() / 2


@pytest.mark.parametrize("fill", ["mean", "blur", "swap"])
def test_nothing_hidden_changes_nothing(fill: Fill) -> None:
    whole = picture(seed=2)
    assert np.array_equal(np.asarray(hide(whole, cells(4, 4), fill)), np.asarray(whole))


def inputs() -> dict[str, Any]:
    return {"image": picture(seed=0), "mask_image": box_mask(), "reference_image": picture(seed=1)}


def test_with_nothing_hidden_the_picture_is_the_same_bit_for_bit() -> None:
    pipeline = demo()
    none, some = np.zeros((4, 4), bool), cells(4, 4, (1, 1), (2, 2))
    first, hidden, again = regenerate(pipeline, inputs(), "reference_image", [none, some, none], seed=3, steps=2)
    (plain,) = regenerate(pipeline, inputs(), "reference_image", [none], seed=3, steps=2)
    assert np.array_equal(first, again)
    assert np.array_equal(first, plain)
    assert not np.array_equal(first, hidden)


def test_what_cannot_be_hidden_is_refused() -> None:
    with pytest.raises(InputError, match="has no 99 x 99 patches"):
        hide(picture(), np.ones((99, 99), bool))
    with pytest.raises(InputError, match="expected mean, blur, swap"):
        hide(picture(), np.ones((2, 2), bool), "black")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"an input that is a picture \(image, mask_image, reference_image\)"):
        next(regenerate(demo(), inputs(), "reference", [np.zeros((4, 4), bool)], seed=0))


def test_the_object_matters_more_than_its_backdrop() -> None:
    """The truth is known of made samples: only the object is painted into the scene."""
    made = SampleMaker(11).make(12)
    shares = made.object_mask[:, 0].numpy().reshape(-1, 16, 4, 16, 4).mean(axis=(2, 4))
    usable = np.flatnonzero((shares == 0).sum(axis=(1, 2)) >= 20)[:3]
    assert usable.size == 3
    pipeline = load_pipeline()
    random = np.random.default_rng(0)
    for number in usable:
        backdrop = shares[number] == 0
        chosen = random.choice(np.flatnonzero(shares[number] == 1), int(backdrop.sum()), replace=False)
        on_object = np.zeros(256, bool)
        on_object[chosen] = True
        reference = ((made.reference[number] + 1) * 127.5).round().numpy().astype(np.uint8).transpose(1, 2, 0)
        given = {
            "image": made.masked_scene[number : number + 1],
            "mask_image": made.mask[number : number + 1],
            "reference_image": PIL.Image.fromarray(np.ascontiguousarray(reference)),
        }
        hidden = [np.zeros((16, 16), bool), on_object.reshape(16, 16), backdrop]
        before, *after = regenerate(pipeline, given, "reference_image", hidden, seed=0, steps=4)
        inside = made.mask[number, 0].numpy() > 0
        of_object, of_backdrop = (np.abs(one.astype(float) - before)[inside].mean() for one in after)
        assert of_object > 1.5 * of_backdrop
