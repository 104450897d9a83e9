"""Record how Flux Kontext looks at its reference while it edits it: generated x reference, a grid on each side.

    python examples/flux_kontext.py --image photo.png --prompt "make it snow" --device cuda -o kontext.zarr

All 57 layers at 1024 x 1024 take 6 GB a step in bfloat16; by default the double blocks are recorded, in every fourth
step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import FluxKontextPipeline
from PIL import Image

from attrace import record


def main(arguments: Sequence[str] | None = None) -> None:
    """Edit a picture and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-Kontext-dev", help="a folder, or an id of the hub")
    parser.add_argument("--image", required=True, help="the picture to edit: the reference")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--every", type=int, default=4, help="record one step of so many")
    parser.add_argument("--layers", nargs="+", default=["transformer_blocks.*"], help="glob patterns of module paths")
    parser.add_argument("--limit", type=float, default=50e9, help="bytes, before compression")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", default="kontext.zarr")
    given = parser.parse_args(arguments)

    pipeline = FluxKontextPipeline.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device)
    reference = Image.open(given.image).convert("RGB")
    rows, columns = given.size
    with record(
        pipeline,
        given.output,
        reference=reference,
        seed=0,
        layers=given.layers,
        steps=slice(0, None, given.every),
        limit_bytes=int(given.limit),
    ) as recording:
        recording.images["generated"] = pipeline(
            image=reference,
            prompt=given.prompt,
            height=rows,
            width=columns,
            max_area=rows * columns,
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")


if __name__ == "__main__":
    main()
