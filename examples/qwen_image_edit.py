"""Record how Qwen-Image-Edit looks at its references while it edits them; several pictures, a grid for each.

python examples/qwen_image_edit.py --image a.png b.png --prompt "both in one room" --device cuda -o qwen.zarr
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import QwenImageEditPlusPipeline
from PIL import Image

from attrace import record


def main(arguments: Sequence[str] | None = None) -> None:
    """Edit pictures and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen-Image-Edit-2509", help="a folder, or an id of the hub")
    parser.add_argument("--image", required=True, nargs="+", help="the references")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=8, help="record one step of so many")
    parser.add_argument(
        "--layers", nargs="+", default=["transformer_blocks.?5.attn"], help="glob patterns of module paths"
    )
    parser.add_argument("--limit", type=float, default=50e9, help="bytes, before compression")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", default="qwen.zarr")
    given = parser.parse_args(arguments)

    dtype = getattr(torch, given.dtype)
    pipeline = QwenImageEditPlusPipeline.from_pretrained(given.model, dtype=dtype).to(given.device)
    references = [Image.open(path).convert("RGB") for path in given.image]
    rows, columns = given.size
    with record(
        pipeline,
        given.output,
        reference=references,
        seed=0,
        layers=given.layers,
        steps=slice(0, None, given.every),
        limit_bytes=int(given.limit),
    ) as recording:
        recording.images["generated"] = pipeline(
            image=references,
            prompt=given.prompt,
            negative_prompt=" ",
            height=rows,
            width=columns,
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")


if __name__ == "__main__":
    main()
