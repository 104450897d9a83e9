"""Record how Flux looks at the picture that Flux Redux puts beside its text: generated x reference.

    python examples/flux_redux.py --image photo.png --device cuda -o redux.zarr

Redux makes tokens of the patches of a picture and adds them to the end of the text; here they lie on their grid again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import FluxPipeline, FluxPriorReduxPipeline
from PIL import Image

from attrace import record

TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint a variation of a picture and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="a folder, or an id of the hub")
    parser.add_argument("--prior", default="black-forest-labs/FLUX.1-Redux-dev", help="the same, of Redux")
    parser.add_argument("--image", required=True, help="the reference")
    parser.add_argument("--prompt", default="", help="text beside the picture")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--every", type=int, default=4, help="record one step of so many")
    parser.add_argument("--layers", nargs="+", default=["transformer_blocks.*"], help="glob patterns of module paths")
    parser.add_argument("--limit", type=float, default=50e9, help="bytes, before compression")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", default="redux.zarr")
    given = parser.parse_args(arguments)

    dtype = getattr(torch, given.dtype)
    pipeline = FluxPipeline.from_pretrained(given.model, dtype=dtype).to(given.device)
    text_parts = {name: getattr(pipeline, name) for name in TEXT_PARTS}
    prior = FluxPriorReduxPipeline.from_pretrained(given.prior, dtype=dtype, **text_parts).to(given.device)
    reference = Image.open(given.image).convert("RGB")
    tokens = prior(reference, prompt=given.prompt)
    side = prior.image_encoder.config.image_size // prior.image_encoder.config.patch_size
    rows, columns = given.size
    with record(
        pipeline,
        given.output,
        reference=reference,
        seed=0,
        key_grid=(side, side),
        layers=given.layers,
        steps=slice(0, None, given.every),
        limit_bytes=int(given.limit),
    ) as recording:
        recording.images["generated"] = pipeline(
            prompt_embeds=tokens.prompt_embeds,
            pooled_prompt_embeds=tokens.pooled_prompt_embeds,
            height=rows,
            width=columns,
            num_inference_steps=given.steps,
            guidance_scale=2.5,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")


if __name__ == "__main__":
    main()
