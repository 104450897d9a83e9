"""Record how Flux 2 looks at its references while it edits them; without any, at the words of the prompt.

python examples/flux_2.py --image a.png b.png --prompt "both in one room" --device cuda -o flux_2.zarr
python examples/flux_2.py --prompt "a red cat on a blue chair" --word cat --device cuda -o flux_2.zarr
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from PIL import Image

from attrace import open_trace, record, token_map

TEXT_TOKENS = 512


def token_texts(pipeline: Any, prompt: str) -> list[str]:
    """The tokens that the pipeline's text encoder is given: a template, and the prompt in it."""
    encoded = pipeline.tokenizer.apply_chat_template(
        format_input([prompt], pipeline.system_message),
        tokenize=True,
        return_dict=True,
        padding="max_length",
        truncation=True,
        max_length=TEXT_TOKENS,
    )
    tokenizer = getattr(pipeline.tokenizer, "tokenizer", pipeline.tokenizer)  # the published one is in a processor
    return list(map(str, tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])))


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint or edit, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.2-dev", help="a folder, or an id of the hub")
    parser.add_argument("--image", nargs="*", default=[], help="the references")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--word", help="a word of the prompt to map, where there is no reference")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=8, help="record one step of so many")
    parser.add_argument("--layers", nargs="+", default=["transformer_blocks.*"], help="glob patterns of module paths")
    parser.add_argument("--limit", type=float, default=50e9, help="bytes, before compression")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", default="flux_2.zarr")
    given = parser.parse_args(arguments)

    pipeline = Flux2Pipeline.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device)
    references = [Image.open(path).convert("RGB") for path in given.image]
    rows, columns = given.size
    with record(
        pipeline,
        given.output,
        reference=references or None,
        seed=0,
        tokens=token_texts(pipeline, given.prompt),
        layers=given.layers,
        steps=slice(0, None, given.every),
        limit_bytes=int(given.limit),
    ) as recording:
        recording.images["generated"] = pipeline(
            image=references or None,
            prompt=given.prompt,
            height=rows,
            width=columns,
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
            max_sequence_length=TEXT_TOKENS,
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    if given.word and not references:
        heat = token_map(open_trace(given.output), given.word).compute()
        row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
        size = f"{heat.sizes['row']} x {heat.sizes['column']}"
        print(f"{given.word!r} is strongest in row {row}, column {column} of {size}")


if __name__ == "__main__":
    main()
