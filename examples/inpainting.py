"""Record Stable Diffusion inpainting: text as keys (the scene comes in by channels of the latent).

python examples/inpainting.py --image room.png --mask mask.png --prompt "a red chair" --word chair --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from attrace import open_trace, record, token_map


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill a mask, record it, and map a word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-inpainting", help="folder or hub id")
    parser.add_argument("--image", required=True, help="the scene")
    parser.add_argument("--mask", required=True, help="white where to paint")
    parser.add_argument("--prompt", required=True, help="what to make")
    parser.add_argument("--word", required=True, help="a word of the prompt")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("-o", "--output", default="inpainting.zarr")
    given = parser.parse_args(arguments)

    dtype = getattr(torch, given.dtype)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(given.model, dtype=dtype).to(given.device)
    image = Image.open(given.image).convert("RGB")
    mask = Image.open(given.mask).convert("L")
    with record(pipeline, given.output, input=image, mask=mask, seed=0) as recording:
        recording.images["generated"] = pipeline(
            prompt=given.prompt,
            image=image,
            mask_image=mask,
            height=given.size[0],
            width=given.size[1],
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    heat = token_map(open_trace(given.output), given.word).compute()
    row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
    print(f"{given.word!r} is strongest in row {row}, column {column} of {heat.sizes['row']} x {heat.sizes['column']}")


if __name__ == "__main__":
    main()
