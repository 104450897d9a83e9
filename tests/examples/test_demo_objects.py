from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from click.testing import CliRunner

from attrace.demo import objects

GROUPS = [
    {"name": "Food & Drink", "emojis": [{"emoji": "\U0001f354", "name": "hamburger"}]},
    {
        "name": "Objects",
        "emojis": [{"emoji": "\u2602\ufe0f", "name": "umbrella"}, {"emoji": "\U0001f4a1", "name": "bulb, not there"}],
    },
    {"name": "Flags", "emojis": [{"emoji": "\U0001f3c1", "name": "chequered flag"}]},
]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Half transparent red bars, twice as wide as high, off the middle of their pictures."""
    for name in ("1f354", "2602-fe0f", "1f3c1"):
        picture = PIL.Image.new("RGBA", (64, 64))
        PIL.ImageDraw.Draw(picture).rectangle((10, 5, 49, 24), fill=(255, 0, 0, 128))
        picture.save(tmp_path / f"{name}.webp", lossless=True, exact=True)
    (tmp_path / "groups.json").write_text(json.dumps(GROUPS))
    output = tmp_path / "objects.npz"
    run = CliRunner().invoke(objects.main, [str(tmp_path), str(tmp_path / "groups.json"), str(output)])
    assert run.exit_code == 0, run.output
    assert "2 objects, 1 of them held out" in run.output
    return output


def test_whole_groups_are_held_out_and_flags_left_out(stored: Path) -> None:
    found = objects.Objects.load(stored)
    assert found.select(held_out=True).names == ["hamburger"]
    assert found.select(held_out=False).names == ["umbrella"]
    assert found.select(held_out=False).groups == ["Objects"]


def test_an_object_fills_its_frame_and_keeps_its_shape(stored: Path) -> None:
    sprites = objects.Objects.load(stored).sprites(64)
    assert sprites.shape == (2, 4, 64, 64)
    covered = sprites[0, 3] > 0.25
    rows, columns = covered.any(1).nonzero()[:, 0], covered.any(0).nonzero()[:, 0]
    margin = objects.MARGIN * 64
    assert abs(int(columns[0]) - margin) < 2
    assert abs(63 - int(columns[-1]) - margin) < 2
    assert int(columns[-1] - columns[0] + 1) == pytest.approx(2 * int(rows[-1] - rows[0] + 1), abs=3)
    middle = sprites[0, :, 32, 32]
    torch.testing.assert_close(middle, torch.tensor([0.5, -0.5, -0.5, 0.5]), atol=0.01, rtol=0)


def test_a_folder_without_the_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text(json.dumps(GROUPS))
    with pytest.raises(ValueError, match=r"expected pictures such as 1f354\.webp, found none"):
        objects.read_objects(tmp_path, tmp_path / "groups.json")


def test_what_is_stored_is_read_as_it_was(stored: Path, tmp_path: Path) -> None:
    first = objects.Objects.load(stored)
    first.save(tmp_path / "again.npz")
    second = objects.Objects.load(tmp_path / "again.npz")
    assert np.array_equal(first.pictures, second.pictures)
    assert (first.names, first.groups) == (second.names, second.groups)
