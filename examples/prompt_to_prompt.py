"""Record Stable Diffusion and average the maps of each token at one resolution, as Prompt-to-Prompt shows them.

python examples/prompt_to_prompt.py --prompt "a dog in the snow" --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline

from attrace import open_trace, record, token_map


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a picture, record it, and map every token of the prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5", help="folder or hub id")
    parser.add_argument("--prompt", required=True, help="what to make")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--grid", type=int, nargs=2, default=(16, 16), help="rows and columns of the layers to take")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("-o", "--output", default="prompt_to_prompt.zarr")
    given = parser.parse_args(arguments)

    dtype = getattr(torch, given.dtype)
    pipeline = StableDiffusionPipeline.from_pretrained(given.model, dtype=dtype).to(given.device)
    with record(pipeline, given.output, seed=0) as recording:
        recording.images["generated"] = pipeline(
            prompt=given.prompt,
            height=given.size[0],
            width=given.size[1],
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    trace = open_trace(given.output)
    (texts, *_) = (one.site_class.tokens for one in trace.classes)
    for place, text in enumerate(texts or ()):
        heat = token_map(trace, place, grid=tuple(given.grid)).compute()
        print(f"{place:3} {text:20} {float(heat.mean()):.4f} on average, {float(heat.max()):.4f} at most")


if __name__ == "__main__":
    main()
