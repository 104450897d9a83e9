"""Record the x4 upscaler: text as keys, in its `attn1` too (the small picture comes in by channels).

python examples/upscaler.py --image small.png --prompt "a white cat" --word cat --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionUpscalePipeline
from PIL import Image

from attrace import open_trace, record, token_map


def main(arguments: Sequence[str] | None = None) -> None:
    """Enlarge a picture, record it, and map a word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stabilityai/stable-diffusion-x4-upscaler", help="folder or hub id")
    parser.add_argument("--image", required=True, help="the small picture")
    parser.add_argument("--prompt", required=True, help="what to make")
    parser.add_argument("--word", required=True, help="a word of the prompt")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("-o", "--output", default="upscaler.zarr")
    given = parser.parse_args(arguments)

    dtype = getattr(torch, given.dtype)
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(given.model, dtype=dtype).to(given.device)
    image = Image.open(given.image).convert("RGB")
    with record(pipeline, given.output, input=image, seed=0) as recording:
        recording.images["generated"] = pipeline(
            prompt=given.prompt,
            image=image,
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    heat = token_map(open_trace(given.output), given.word).compute()
    row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
    print(f"{given.word!r} is strongest in row {row}, column {column} of {heat.sizes['row']} x {heat.sizes['column']}")


if __name__ == "__main__":
    main()
