"""Record which words Flux looks at while it paints, or repaints a picture, and where: generated x text.

python examples/flux.py --prompt "a red cat on a blue chair" --word cat --device cuda -o flux.zarr
python examples/flux.py --prompt "a red cat on a blue chair" --word cat --image photo.png --strength 0.8 --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from attrace import open_trace, record, token_map


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint a prompt, record it, and say where one of its words acts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="a folder, or an id of the hub")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--word", required=True, help="a word of the prompt")
    parser.add_argument("--image", help="a picture to start from")
    parser.add_argument("--strength", type=float, default=0.8, help="how much of the picture is made anew")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--every", type=int, default=4, help="record one step of so many")
    parser.add_argument("--layers", nargs="+", default=["transformer_blocks.*"], help="glob patterns of module paths")
    parser.add_argument("--limit", type=float, default=50e9, help="bytes, before compression")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", default="flux.zarr")
    given = parser.parse_args(arguments)

    scene = None if given.image is None else Image.open(given.image).convert("RGB")
    start: dict[str, Any] = {} if scene is None else {"image": scene, "strength": given.strength}
    pipeline_class = FluxPipeline if scene is None else FluxImg2ImgPipeline
    pipeline = pipeline_class.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device)
    rows, columns = given.size
    with record(
        pipeline,
        given.output,
        input=scene,
        seed=0,
        layers=given.layers,
        steps=slice(0, None, given.every),
        limit_bytes=int(given.limit),
    ) as recording:
        recording.images["generated"] = pipeline(
            prompt=given.prompt,
            height=rows,
            width=columns,
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
            **start,
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    heat = token_map(open_trace(given.output), given.word).compute()
    row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
    print(f"{given.word!r} is strongest in row {row}, column {column} of {heat.sizes['row']} x {heat.sizes['column']}")


if __name__ == "__main__":
    main()
