"""Record Paint-by-Example and say where its reference acts: one vector, so no map over it.

python examples/paint_by_example.py --scene room.png --mask mask.png --reference chair.png --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from PIL import Image

from attrace import open_trace, record, ulam
from attrace.recorder.jobs.pipelines import load_pipeline


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint the reference into the scene and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Fantasy-Studio/Paint-by-Example", help="folder or hub id")
    parser.add_argument("--scene", required=True, help="the picture to paint into")
    parser.add_argument("--mask", required=True, help="white where to paint")
    parser.add_argument("--reference", required=True, help="the picture of what to paint")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("-o", "--output", default="paint_by_example.zarr")
    given = parser.parse_args(arguments)

    pipeline = load_pipeline(given.model, dtype=given.dtype, device=given.device)
    scene = Image.open(given.scene).convert("RGB")
    mask = Image.open(given.mask).convert("L")
    reference = Image.open(given.reference).convert("RGB")
    with record(pipeline, given.output, reference=reference, input=scene, mask=mask, seed=0) as recording:
        recording.images["generated"] = pipeline(
            image=scene,
            mask_image=mask,
            example_image=reference,
            height=given.size[0],
            width=given.size[1],
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    heat = ulam(open_trace(given.output), direction="r2g", density=True).compute()
    row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
    print(f"the reference acts most in row {row}, column {column} of {heat.sizes['row']} x {heat.sizes['column']}")


if __name__ == "__main__":
    main()
