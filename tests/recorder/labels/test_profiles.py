"""Profiles as data: the files of the known families, and a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import models
from support.reading import read_manifest

from attrace.recorder import KeyContext, Profile, record
from attrace.recorder.labels import profile as profiles
from attrace.recorder.labels.profile import known_profiles, named_profile
from attrace.schemas import InputError

MINE = """
name = "mine"
note = "of ours"

[[contexts]]
context = "reference"
keys = "query-grid"
layers = "up_blocks.*"

[[contexts]]
context = "text"
keys = "text"

[guidance]
1 = ["conditional"]
3 = ["conditional", "image", "unconditional"]
"""


def test_a_file_holds_what_a_profile_in_python_holds(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    assert named_profile(str(path)) == Profile(
        "mine",
        (KeyContext("reference", "query-grid", "up_blocks.*"), KeyContext("text", "text")),
        guidance={1: ("conditional",), 3: ("conditional", "image", "unconditional")},
        note="of ours",
    )


@pytest.mark.parametrize("as_path", [False, True])
def test_a_recording_takes_a_file(as_path: bool, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    unet = models.tiny_unet()
    with record(unet, tmp_path / "run.zarr", profile=path if as_path else str(path)):
        unet(torch.randn(1, 4, 8, 8), 5, encoder_hidden_states=torch.randn(1, 16, 32))
    manifest = read_manifest(tmp_path / "run.zarr")
    assert (manifest.capture["profile"], manifest.capture["warnings"]) == ("mine", ["of ours"])
    assert {one.context for one in manifest.classes} == {"reference", "text"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('name = "a"\ntokeniser = "b"', "tokeniser: Unexpected"),
        ('name = "a"\n[[contexts]]\ncontext = "text"\nkeys = "words"', r"contexts\.0\.keys: Input should be 'text'"),
        ("joint = true", "name: Field required"),
        ("name", "Expected '='"),
        (None, "No such file"),
    ],
)
def test_a_file_that_holds_no_profile_is_refused(text: str | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"mine\.toml.*docs/models\.md.*{problem}"):
        named_profile(str(path))


def test_each_family_has_a_file_of_its_name() -> None:
    files = sorted(path.stem for path in (Path(profiles.__file__).parent / "profiles").iterdir())
    assert list(known_profiles()) == files
    classes = [name for one in known_profiles().values() for name in one.pipelines]
    assert len(classes) == len(set(classes)) > 40
