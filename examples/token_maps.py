"""Record Stable Diffusion (1.5, 2, XL) and say where a word of the prompt acts, as the tool DAAM does.

python examples/token_maps.py --prompt "a dog in the snow" --word dog --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

from attrace import open_trace, record, token_map
from attrace.analysis.maps import daam


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a picture, record it, and map a word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5", help="folder or hub id")
    parser.add_argument("--prompt", required=True, help="what to make")
    parser.add_argument("--word", required=True, help="a word of the prompt")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--compat", choices=["daam"], help="DAAM's choice of layers, and its sum over steps")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("-o", "--output", default="token_maps.zarr")
    given = parser.parse_args(arguments)

    dtype = getattr(torch, given.dtype)
    pipeline = DiffusionPipeline.from_pretrained(given.model, dtype=dtype).to(given.device)
    with record(pipeline, given.output, seed=0) as recording:
        recording.images["generated"] = pipeline(
            prompt=given.prompt,
            height=given.size[0],
            width=given.size[1],
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    make = daam.token_map if given.compat == "daam" else token_map
    heat = make(open_trace(given.output), given.word).compute()
    row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
    print(f"{given.word!r} is strongest in row {row}, column {column} of {heat.sizes['row']} x {heat.sizes['column']}")


if __name__ == "__main__":
    main()
