"""Record InstructPix2Pix: three branches, text as keys (its picture comes in by channels of the latent).

python examples/instruct_pix2pix.py --image photo.png --prompt "make it snow" --word snow --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image

from attrace import open_trace, record, token_map


def main(arguments: Sequence[str] | None = None) -> None:
    """Edit a picture, record it, and map a word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timbrooks/instruct-pix2pix", help="folder or hub id")
    parser.add_argument("--image", required=True, help="the picture to edit")
    parser.add_argument("--prompt", required=True, help="what to make")
    parser.add_argument("--word", required=True, help="a word of the prompt")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("-o", "--output", default="instruct_pix2pix.zarr")
    given = parser.parse_args(arguments)

    dtype = getattr(torch, given.dtype)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(given.model, dtype=dtype).to(given.device)
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
