"""Record which words Qwen-Image looks at while it paints, and where: generated x text.

    python examples/qwen_image.py --prompt "a red cat on a blue chair" --word cat --device cuda -o qwen.zarr

The text encoder is given a template with the prompt in it, and the pipeline drops its beginning: the recorder cannot
know which tokens are left, so the script says it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline

from attrace import open_trace, record, token_map

TEXT_TOKENS = 512


def token_texts(pipeline: Any, prompt: str) -> list[str]:
    """The tokens that are left of the template: the prompt, and the end of the template."""
    encoded = pipeline.tokenizer(pipeline.prompt_template_encode.format(prompt))
    kept = encoded.input_ids[pipeline.prompt_template_encode_start_idx :][:TEXT_TOKENS]
    return list(map(str, pipeline.tokenizer.convert_ids_to_tokens(kept)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint a prompt, record it, and say where one of its words acts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen-Image", help="a folder, or an id of the hub")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--word", required=True, help="a word of the prompt")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=5, help="record one step of so many")
    parser.add_argument("--limit", type=float, default=50e9, help="bytes, before compression")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", default="qwen.zarr")
    given = parser.parse_args(arguments)

    pipeline = QwenImagePipeline.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device)
    rows, columns = given.size
    with record(
        pipeline,
        given.output,
        seed=0,
        tokens=token_texts(pipeline, given.prompt),
        steps=slice(0, None, given.every),
        limit_bytes=int(given.limit),
    ) as recording:
        recording.images["generated"] = pipeline(
            prompt=given.prompt,
            negative_prompt=" ",
            height=rows,
            width=columns,
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
            max_sequence_length=TEXT_TOKENS,
        ).images[0]
    print(f"{given.output}: {recording.statistics}")
    heat = token_map(open_trace(given.output), given.word).compute()
    row, column = divmod(int(heat.values.argmax()), heat.sizes["column"])
    print(f"{given.word!r} is strongest in row {row}, column {column} of {heat.sizes['row']} x {heat.sizes['column']}")


if __name__ == "__main__":
    main()
