"""The support table of docs/models.md: its rows, and what the marked tests say of them.

`pytest tests --support-table` writes it anew from the results of the tests that are marked with
`@pytest.mark.supports(row)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "models.md"

_BEGIN, _END = "<!-- support table: begin -->\n", "<!-- support table: end -->\n"


@dataclass(frozen=True)
class Row:
    """A model, or a family of models."""

    profile: str
    """Names of its profiles."""
    tested: str
    """The network that the tests run."""
    example: str
    """Script in examples/, without its suffix."""


_TINY = "diffusers' classes, tiny random weights"
_OURS = "small networks of ours with its names and calls"
_JOINED = "diffusers' U-Net, tiny random weights, processors of ours that join keys"

ROWS: Final[Mapping[str, Row]] = {
    "Paint-by-Example, diffusers": Row("paint-by-example", _TINY, "paint_by_example"),
    "Paint-by-Example, original code": Row("paint-by-example-ldm", _OURS, "research_code"),
    "DCI-VTON": Row("dci-vton", _OURS, "research_code"),
    "StableVITON": Row("stableviton", _OURS, "research_code"),
    "PASD": Row("pasd", _OURS, "research_code"),
    "SeeSR": Row("seesr", _OURS, "research_code"),
    "Stable Diffusion 1.5 (DAAM)": Row("stable-diffusion", _TINY, "token_maps"),
    "Stable Diffusion 2 (DAAM)": Row("stable-diffusion", _TINY, "token_maps"),
    "Stable Diffusion XL (DAAM)": Row("stable-diffusion-xl", _TINY, "token_maps"),
    "Prompt-to-Prompt": Row("stable-diffusion", _TINY, "prompt_to_prompt"),
    "IP-Adapter, SD 1.5": Row("stable-diffusion", _TINY, "ip_adapter"),
    "IP-Adapter, SDXL": Row("stable-diffusion-xl", _TINY, "ip_adapter"),
    "InstructPix2Pix": Row("instruct-pix2pix", _TINY, "instruct_pix2pix"),
    "SD inpainting": Row("inpainting", _TINY, "inpainting"),
    "x4 upscaler": Row("upscaler", _TINY, "upscaler"),
    "ControlNet beside a U-Net": Row("stable-diffusion", _TINY, "controlnet"),
    "Stable Diffusion 3, 3.5": Row("stable-diffusion-3", _TINY, "sd3"),
    "Flux": Row("flux", _TINY, "flux"),
    "Flux Kontext": Row("flux-kontext", _TINY, "flux_kontext"),
    "Flux Redux": Row("flux", _TINY, "flux_redux"),
    "Flux 2": Row("flux-2", _TINY, "flux_2"),
    "Qwen-Image": Row("qwen-image", _TINY, "qwen_image"),
    "Qwen-Image-Edit, Edit Plus": Row("qwen-image-edit", _TINY, "qwen_image_edit"),
    "Joined keys (IDM-VTON, Leffa)": Row("reference-network", _JOINED, "reference_network"),
    "Replaced keys (MasaCtrl)": Row("mutual-attention", _JOINED, "reference_network"),
}
"""By their names in the table, in its order."""

Counts = Mapping[str, Mapping[str, int]]
"""Passed tests by row and by the name of their file."""


def render(counts: Counts) -> str:
    """The table, in Markdown."""
    lines = ["| model | profile | tests run | tests that passed | example |", "| --- | --- | --- | --- | --- |"]
    for name, row in ROWS.items():
        tests = ", ".join(f"{file} {count}" for file, count in sorted(counts.get(name, {}).items())) or "none"
        example = f"[{row.example}.py](../examples/{row.example}.py)"
        lines.append(f"| {name} | {row.profile} | {row.tested} | {tests} | {example} |")
    return "\n".join(lines) + "\n"


def read_counts(text: str) -> dict[str, dict[str, int]]:
    """What a document's table says."""
    counts = {}
    for line in _table(text).splitlines()[2:]:
        name, _, _, tests, _ = (cell.strip() for cell in line.strip("|").split("|"))
        counts[name] = {file: int(count) for file, count in re.findall(r"(test_\w+\.py) (\d+)", tests)}
    return counts


def write(counts: Counts) -> None:
    """Put the table into the document."""
    text = DOCUMENT.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    DOCUMENT.write_text(before + begin + render(counts) + end + after)


def _table(text: str) -> str:
    return text.partition(_BEGIN)[2].partition(_END)[0]
