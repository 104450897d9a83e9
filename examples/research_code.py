r"""Record research code as it is published: its own script runs, with a recording around each picture that it makes.

    python examples/research_code.py paint-by-example-ldm --checkout Paint-by-Example --reference shoe.jpg -o runs -- \
        --plms --config configs/v1.yaml --ckpt checkpoints/model.ckpt --n_samples 1 --scale 5 \
        --image_path scene.png --mask_path mask.png --reference_path shoe.jpg
    python examples/research_code.py dci-vton --checkout DCI-VTON-Virtual-Try-On -o runs -- \
        --plms --config configs/viton512.yaml --ckpt viton512.ckpt --dataroot VITON-HD --n_samples 1 --scale 1
    python examples/research_code.py stableviton --checkout StableVITON -o runs -- \
        --config_path configs/VITONHD.yaml --model_load_path ckpts/VITONHD.ckpt --data_root_dir DATA --batch_size 1
    python examples/research_code.py pasd --checkout PASD -o runs -- \
        --pasd_model_path runs/pasd/checkpoint-100000 --image_path photo.png
    python examples/research_code.py seesr --checkout SeeSR -o runs -- --seesr_model_path preset/models/seesr \
        --ram_ft_path preset/models/DAPE.pth --pretrained_model_path preset/models/sd21 --image_path photo.png

What stands after `--` goes to the script of the checkout, which runs in that folder: give absolute paths, or paths from
there. Install what it asks for, and attrace beside it. A batch of n pictures gives n traces.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import itertools
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attrace import record


@dataclass(frozen=True)
class Family:
    """Where the published code makes a picture."""

    script: str
    """Its own script, in the checkout."""
    makers: tuple[str, ...]
    """Methods that make a batch of pictures, `module:Class.method`."""


SAMPLERS = ("ldm.models.diffusion.plms:PLMSSampler.sample", "ldm.models.diffusion.ddim:DDIMSampler.sample")
FAMILIES = {
    "paint-by-example-ldm": Family("scripts/inference.py", SAMPLERS),
    "dci-vton": Family("test.py", SAMPLERS),
    "stableviton": Family("inference.py", ("cldm.plms_hacked:PLMSSampler.sample",)),
    "pasd": Family("test_pasd.py", ("pasd.pipelines.pipeline_pasd:StableDiffusionControlNetPipeline.__call__",)),
    "seesr": Family("test_seesr.py", ("pipelines.pipeline_seesr:StableDiffusionControlNetPipeline.__call__",)),
}


def record_each(maker: str, outputs: Iterator[Path], reference: Image.Image | None, **options: Any) -> None:
    """Put a recording around every call of a method of the published code."""
    module, _, place = maker.partition(":")
    class_name, _, name = place.partition(".")
    owner = getattr(importlib.import_module(module), class_name)
    make = getattr(owner, name)

    @functools.wraps(make)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(make).bind(self, *args, **kwargs).arguments
        paths = list(itertools.islice(outputs, given.get("batch_size", 1)))
        model = getattr(self, "model", self)  # of a sampler; a pipeline records itself
        with record(model, paths, reference=reference or given.get("image"), **options) as recording:
            made = make(self, *args, **kwargs)
            recording.images["generated"] = made.images if hasattr(made, "images") else decoded(model, made[0])
        print(f"{', '.join(map(str, paths))}: {recording.statistics}")
        return made

    setattr(owner, name, recorded)


def decoded(model: Any, latents: Any) -> list[Any]:
    """The pictures of some latents."""
    pixels = ((model.decode_first_stage(latents).float() + 1) / 2).clamp(0, 1)
    return list(pixels.permute(0, 2, 3, 1).cpu().numpy())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script of a checkout and record what it makes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--checkout", type=Path, required=True, help="folder of the published code")
    parser.add_argument("--reference", type=Path, help="the reference picture, to keep in the traces")
    parser.add_argument("--layers", nargs="+", help="glob patterns of module paths; all by default")
    parser.add_argument("--limit", type=float, help="bytes of a recording, before compression")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs"), help="folder for the traces")
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:end])

    family = FAMILIES[given.family]
    output, script = given.output.absolute(), given.checkout.absolute() / family.script
    reference = None if given.reference is None else Image.open(given.reference).convert("RGB")
    output.mkdir(parents=True, exist_ok=True)
    os.chdir(given.checkout)
    sys.path[:0] = [str(script.parent), str(Path.cwd())]
    sys.argv = [str(script), *words[end + 1 :]]
    outputs = (output / f"{given.family}-{number}.zarr" for number in itertools.count())
    options = {"layers": given.layers, "limit_bytes": None if given.limit is None else int(given.limit)}
    for maker in family.makers:
        record_each(maker, outputs, reference, profile=given.family, **options)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
