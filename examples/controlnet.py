"""Record a U-Net and the ControlNet beside it in one run: two traces.

python examples/controlnet.py --image edges.png --prompt "a bird" --word bird --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image

from attrace import open_trace, record, token_map


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a picture, record both networks, and map a word in each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5", help="folder or hub id")
    parser.add_argument("--controlnet", default="lllyasviel/sd-controlnet-canny", help="folder or hub id")
    parser.add_argument("--image", required=True, help="the control picture")
    parser.add_argument("--prompt", required=True, help="what to make")
    parser.add_argument("--word", required=True, help="a word of the prompt")
    parser.add_argument("--controlnet-output", default="controlnet_network.zarr")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("-o", "--output", default="controlnet.zarr")
    given = parser.parse_args(arguments)

    dtype = getattr(torch, given.dtype)
    network = ControlNetModel.from_pretrained(given.controlnet, dtype=dtype)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(given.model, dtype=dtype, controlnet=network).to(
        given.device
    )
    image = Image.open(given.image).convert("RGB")
    with (
        record(pipeline, given.output, seed=0) as recording,
        record(pipeline, given.controlnet_output, seed=0, network="controlnet"),
    ):
        recording.images["generated"] = pipeline(
            prompt=given.prompt,
            image=image,
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    for name in (given.output, given.controlnet_output):
        heat = token_map(open_trace(name), given.word).compute()
        row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
        print(f"{name}: {given.word!r} is strongest in row {row}, column {column} of {dict(heat.sizes)}")


if __name__ == "__main__":
    main()
