"""Record the demo: one sample painted by the bundled model, its attention in one trace."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.utils import logging

from attrace.demo.joint import JointInpaintPipeline
from attrace.demo.pictures import load_pictures
from attrace.demo.pipeline import InpaintPipeline, ReferenceInpaintPipeline
from attrace.recorder import record

WEIGHTS = Path(__file__).parent / "weights"
"""The trained pipeline, as `save_pretrained` leaves it."""


def load_pipeline(folder: Path | None = None) -> InpaintPipeline:
    """Load the bundled pipeline, or one that training left in a folder, in float32."""
    folder = folder or WEIGHTS
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    kind = {one.__name__: one for one in (ReferenceInpaintPipeline, JointInpaintPipeline)}[name]
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of reading three small files
    try:
        pipeline: InpaintPipeline = kind.from_pretrained(folder, local_files_only=True)
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def record_demo(
    path: Path, *, reference: Path | None = None, seed: int = 0, steps: int = 20, overwrite: bool = False
) -> Path:
    """Paint the reference into the bundled scene and record the run.

    Parameters
    ----------
    path
        Where the trace goes.
    reference
        A picture file to paint in place of the bundled one; its middle square is used.
    seed
        Of the noise.
    steps
        DDIM steps.
    overwrite
        Replace a trace that is there.

    Returns
    -------
    Path
        `path`.
    """
    pictures = load_pictures(reference)
    pipeline = load_pipeline()
    with record(
        pipeline,
        path,
        reference=pictures.reference,
        mask=pictures.mask,
        input=pictures.scene,
        seed=seed,
        model_id="attrace demo",
        values=True,
        overwrite=overwrite,
    ) as recording:
        recording.images["truth"] = pictures.truth
        recording.images["generated"] = pipeline(
            pictures.scene,
            pictures.mask,
            pictures.reference,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
    return path
