"""Record an IP-Adapter on Stable Diffusion (1.5 or XL): the text and the picture's tokens are contexts apart.

python examples/ip_adapter.py --image style.png --prompt "a cat" --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from attrace import open_trace, record, ulam


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a picture after another, record it, and map both contexts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5", help="folder or hub id")
    parser.add_argument("--adapter", default="h94/IP-Adapter", help="folder or hub id")
    parser.add_argument("--subfolder", default="models")
    parser.add_argument("--weights", default="ip-adapter_sd15.safetensors", help="-plus has 16 tokens, -full-face 257")
    parser.add_argument("--image", required=True, help="the picture to follow")
    parser.add_argument("--prompt", required=True, help="what to make")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("-o", "--output", default="ip_adapter.zarr")
    given = parser.parse_args(arguments)

    dtype = getattr(torch, given.dtype)
    pipeline = DiffusionPipeline.from_pretrained(given.model, dtype=dtype)
    pipeline.load_ip_adapter(given.adapter, subfolder=given.subfolder, weight_name=given.weights)
    pipeline.to(given.device)
    image = Image.open(given.image).convert("RGB")
    with record(pipeline, given.output, reference=image, seed=0) as recording:
        recording.images["generated"] = pipeline(
            prompt=given.prompt,
            ip_adapter_image=image,
            height=given.size[0],
            width=given.size[1],
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    trace = open_trace(given.output)
    for context in trace.contexts:
        heat = ulam(trace.sel(context=context), direction="r2g", density=True).compute()
        row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
        print(f"{context} acts most in row {row}, column {column} of {heat.sizes['row']} x {heat.sizes['column']}")


if __name__ == "__main__":
    main()
