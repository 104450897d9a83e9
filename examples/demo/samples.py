"""Write held-out samples of the demo as pictures and a list of jobs: `python -m attrace.demo.samples -o samples`.

The list is one for `attrace record --jobs` and `attrace faithfulness --jobs`. Of each sample there are the scene, the
mask, the reference, and two pictures that the model never sees: where the object lies in the reference, and the truth.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import PIL.Image
from torch import Tensor

from attrace.demo.data import SIZE, Samples
from attrace.demo.train import held_out_samples


def write_samples(samples: Samples, folder: Path) -> Path:
    """Write every sample into a folder.

    Returns
    -------
    Path
        The list of jobs, one for each sample, with its number as the seed of the noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for number in range(len(samples.scene)):
        pictures = {
            "scene": _colours(samples.masked_scene[number]),
            "reference": _colours(samples.reference[number]),
            "truth": _colours(samples.scene[number]),
            "mask": _mask(samples.mask[number]),
            "object": _mask(samples.object_mask[number]),
        }
        for name, picture in pictures.items():
            picture.save(folder / f"{number:03d}-{name}.png")
        inputs = {"image": "scene", "mask_image": "mask", "reference_image": "reference"}
        jobs.append(
            {
                "id": f"{number:03d}",
                "inputs": {argument: f"@{number:03d}-{name}.png" for argument, name in inputs.items()},
                "seed": number,
                "reference": "reference_image",
                "mask": "mask_image",
                "scene": "image",
            }
        )
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return path


def _colours(picture: Tensor) -> PIL.Image.Image:
    pixels = ((picture + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    return PIL.Image.fromarray(pixels.numpy().astype(np.uint8))


def _mask(mask: Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray((mask[0].numpy() > 0.5).astype(np.uint8) * 255)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--samples", default=8, help="How many samples.")
@click.option("--seed", default=20_000, help="Of the samples.")
def main(output: Path, samples: int, seed: int) -> None:
    """Write samples and print the list of jobs."""
    click.echo(write_samples(held_out_samples(samples, seed, SIZE), output))


if __name__ == "__main__":
    main()
