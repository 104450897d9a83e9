from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from attrace.recorder.session.provenance import identify


@pytest.mark.parametrize(("origin", "kept"), [("group/model", "group/model"), ("", None), (None, None)])
def test_a_hub_id_is_kept(origin: str | None, kept: str | None) -> None:
    assert identify(SimpleNamespace(config={"_name_or_path": origin})).model_id == kept


def test_the_folders_above_a_local_model_are_nobodys_business(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert identify(SimpleNamespace(config={"_name_or_path": str(tmp_path / "model")})).model_id == "model"


def test_where_a_model_was_loaded_from_does_not_change_its_hash() -> None:
    here, there = (identify(SimpleNamespace(config={"width": 3, "_name_or_path": name})) for name in ("a/b", "c/d"))
    assert here.config_hash == there.config_hash
    assert here.config_hash != identify(SimpleNamespace(config={"width": 4})).config_hash
