"""Record a reference network: a copy of the U-Net hands features of a reference to the self-attention of the first.

    python examples/reference_network.py --image cat.png --prompt "a cat on the moon" --device cuda -o reference.zarr
    python examples/reference_network.py --replace --image cat.png --prompt "a cat that jumps" --device cuda

The copy is given the reference with the same noise level, and what its self-attention layers see is joined to the keys
of the same layers of the U-Net that paints. IDM-VTON and Leffa do this with trained networks; it works without training
too. With --replace it takes the place of the picture's own keys, in the decoder and from a later step on: the mutual
self-attention of MasaCtrl. The recorder needs no more than the profile that says so.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from attrace import MUTUAL_ATTENTION, REFERENCE_NETWORK, record


class SelfAttention:
    """Self-attention whose keys and values are joined, or replaced, by those of `other`; remembers its input."""

    def __init__(self, other: SelfAttention | None = None, *, replaces: bool = False) -> None:
        self.other, self.replaces = other, replaces
        self.seen: Tensor | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Attend, as diffusers' `AttnProcessor2_0` does."""
        self.seen = context = hidden_states
        if self.other is not None and self.other.seen is not None:
            context = self.other.seen if self.replaces else torch.cat([hidden_states, self.other.seen], dim=1)
        projected = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in projected)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        output: Tensor = attn.to_out[0](attended)
        return output


def join_reference(
    pipeline: Any,
    reference: Image.Image,
    size: tuple[int, int],
    *,
    layers: Sequence[str] = ("*attn1",),
    replaces: bool = False,
    first_call: int = 0,
) -> None:
    """Give the pipeline's U-Net a reference network, which runs before each of its calls from `first_call` on."""
    unet, network = pipeline.unet, copy.deepcopy(pipeline.unet)
    paths = [path for path in unet.attn_processors if any(fnmatchcase(path, f"{one}.processor") for one in layers)]
    given = {path: SelfAttention() for path in paths}
    taking = {path: SelfAttention(one, replaces=replaces) for path, one in given.items()}
    network.set_attn_processor(network.attn_processors | given)
    unet.set_attn_processor(unet.attn_processors | taking)
    pixels = np.asarray(reference.resize(size[::-1]), np.float32) / 127.5 - 1
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(unet.device, unet.dtype)
    with torch.no_grad():
        latents = pipeline.vae.encode(picture).latent_dist.mean * pipeline.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).to(latents)
    calls = itertools.count()

    def run_network(_unet: Any, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if next(calls) < first_call:
            return
        sample, timestep = inputs[0], inputs[1]
        noisy = pipeline.scheduler.add_noise(latents, noise, timestep.reshape(1)).to(sample.dtype)
        network(noisy.expand(len(sample), -1, -1, -1), timestep, encoder_hidden_states=named["encoder_hidden_states"])

    unet.register_forward_pre_hook(run_network, with_kwargs=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint with a reference and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5", help="a folder, or a hub id")
    parser.add_argument("--image", required=True, help="the reference")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--replace", action="store_true", help="take the reference's keys alone, as MasaCtrl does")
    parser.add_argument("--start", type=int, default=4, help="step that --replace begins with")
    parser.add_argument("--layers", nargs="+", help="of self-attention, to join and record: glob patterns")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("-o", "--output", default="reference.zarr")
    given = parser.parse_args(arguments)

    pipeline = StableDiffusionPipeline.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device)
    reference = Image.open(given.image).convert("RGB")
    rows, columns = given.size
    layers = given.layers or ["up_blocks.*attn1" if given.replace else "*attn1"]
    first_call = given.start if given.replace else 0
    join_reference(pipeline, reference, (rows, columns), layers=layers, replaces=given.replace, first_call=first_call)
    with record(
        pipeline,
        given.output,
        reference=reference,
        seed=0,
        layers=layers,
        steps=slice(first_call, None),
        profile=MUTUAL_ATTENTION if given.replace else REFERENCE_NETWORK,
    ) as recording:
        recording.images["generated"] = pipeline(
            given.prompt,
            height=rows,
            width=columns,
            num_inference_steps=given.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    print(f"{given.output}: {recording.statistics}")


if __name__ == "__main__":
    main()
