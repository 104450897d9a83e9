"""Record which words Stable Diffusion 3 looks at, and where: generated x text, of its joint attention.

python examples/sd3.py --prompt "a red cat on a blue chair" --word cat --device cuda -o sd3.zarr
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import StableDiffusion3Pipeline

from attrace import open_trace, record, token_map


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint a prompt, record it, and say where one of its words acts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="stabilityai/stable-diffusion-3.5-medium", help="a folder, or an id of the hub"
    )
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--word", required=True, help="a word of the prompt")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--every", type=int, default=4, help="record one step of so many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("-o", "--output", default="sd3.zarr")
    given = parser.parse_args(arguments)

    pipeline = StableDiffusion3Pipeline.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device)
    rows, columns = given.size
    with record(pipeline, given.output, seed=0, steps=slice(0, None, given.every)) as recording:
        recording.images["generated"] = pipeline(
            given.prompt,
            height=rows,
            width=columns,
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    heat = token_map(open_trace(given.output), given.word).compute()
    row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
    print(
        f"{given.word!r} is strongest in row {row} and column {column} of {heat.sizes['row']} x {heat.sizes['column']}"
    )


if __name__ == "__main__":
    main()
