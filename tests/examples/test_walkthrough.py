"""The notebook runs from its first cell to its last, and is kept without what it printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import models

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "walkthrough.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after a run of six steps, with a text model of random weights for its last part."""
    folder = tmp_path_factory.mktemp("notebook")
    pipeline = models.stable_diffusion(sample_size=8)
    pipeline.save_pretrained(folder / "text")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += f"\ntext_model = {str(folder / 'text')!r}\nsteps = 6"
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    return client.execute()


def outputs(notebook: Any, text: str) -> list[Any]:
    """What the one cell with this text in it printed and showed."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)
    return [output.get("data", output) for output in cell.outputs]


def test_every_cell_runs(executed: Any) -> None:
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in ran)
    assert [output for cell in ran for output in cell.outputs if output.output_type == "error"] == []


def test_a_trace_is_shown_with_its_pictures(executed: Any) -> None:
    (shown,) = (shown for shown in outputs(executed, 'open_trace(f"{folder}/demo') if "text/html" in shown)
    assert shown["text/html"].count("data:image/png") == 2
    assert ", 6 steps, complete" in shown["text/html"]


@pytest.mark.parametrize(
    "text", ["import hlam, llam", "groups=4", 'hlam(trace, direction="g2r").plot', "sram(trace", "token_map(text"]
)
def test_maps_are_drawn(text: str, executed: Any) -> None:
    assert any("image/png" in shown for shown in outputs(executed, text))


def test_scores_are_numbers(executed: Any) -> None:
    (shown,) = outputs(executed, "import agreement")
    scores = json.loads(shown["text/plain"].replace("'", '"'))
    assert 0 < scores["inside the mask"] < 1
    assert 0 <= scores["agreement of the heads"] <= 1


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count] == []
