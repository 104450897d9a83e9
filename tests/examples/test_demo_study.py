from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from attrace.demo.pipeline import build_pipeline

study = pytest.importorskip("attrace.demo.study")
pytest.importorskip("skimage", reason="the study reads its photographs from scikit-image")


def test_correlation_of_ranks_by_hand() -> None:
    # ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * (0 + 0 + 1 + 1) / (4 * 15)
    value, low, high = study.correlation([0.1, 0.2, 0.3, 9.0], [1, 2, 40, 30])
    assert value == pytest.approx(0.8)
    assert low <= value <= high
    assert study.correlation([1, 2, 3], [3, 2, 1])[0] == pytest.approx(-1)


def test_each_score_counts_more_as_better() -> None:
    bad = {"r2g_imacs": -1, "r2g_mass": 0.3, "g2r_object_mass": 0.5, "sram_error": {"a": 8, "b": 8}}
    good = {"r2g_imacs": 0.5, "r2g_mass": 0.9, "g2r_object_mass": 0.8, "sram_error": {"a": 1, "b": 2}}
    assert all(score(good) > score(bad) for score in study.SCORES.values())


@pytest.mark.slow
def test_a_study_is_resumed_and_keeps_what_other_settings_measured(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        build_pipeline((16, 16), token_channels=16, heads=2).save_pretrained(tmp_path / "run/steps" / f"{step:05d}")
    rows, run = tmp_path / "rows.jsonl", str(tmp_path / "run")

    def study_of(samples: int) -> str:
        options = ["--rows", str(rows), "--samples", str(samples), "--steps", "1"]
        result = CliRunner().invoke(study.main, [run, *options])
        assert result.exit_code == 0, result.output
        return result.stdout

    first = study_of(2)
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["model"] for row in kept] == ["run, step 1", "run, step 2", "run, step 3"]
    assert "| run, step 2 |" in first
    assert "| R2G IMACS |" in first
    assert study_of(2) == first
    assert len(rows.read_text().splitlines()) == 3
    study_of(1)
    assert len(rows.read_text().splitlines()) == 6


def test_a_run_without_kept_pipelines_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(study.main, [str(tmp_path)])
    assert result.exit_code == 2
    assert "train it with --keep" in result.output


@pytest.mark.slow
def test_the_tables_of_the_page_are_those_of_the_kept_rows() -> None:
    root = Path(__file__).parents[2]
    rows = [json.loads(line) for line in (root / "examples/demo/study.jsonl").read_text().splitlines()]
    page = (root / "docs/study.md").read_text()
    assert study.model_table(rows) in page
    assert study.correlation_table(rows) in page
