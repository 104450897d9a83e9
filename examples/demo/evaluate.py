"""Measure the demo's model on held-out samples, from traces alone: `python -m attrace.demo.evaluate`.

The samples are made from photographs, and with `--objects` from objects, that were never seen in training. Each is
painted and recorded; everything about attention is then computed from the trace and compared with the truth, which is
known because the samples are made. An untrained network of the same shape stands beside the trained one. `--ablate`
also paints ten of them without the attention of each layer, `--pictures` draws them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
import xarray as xr
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from attrace.analysis import Trace, correspondence, imacs, llam, mass, precompute, ulam
from attrace.demo.data import Samples
from attrace.demo.objects import Objects
from attrace.demo.pipeline import InpaintPipeline
from attrace.demo.placement import reference_position
from attrace.demo.run import load_pipeline
from attrace.demo.train import held_out_samples
from attrace.recorder import record


@dataclass(frozen=True)
class Quality:
    """What was measured over a set of samples."""

    psnr: float
    """Peak signal-to-noise ratio inside the mask, in dB, mean over samples: how well the object was painted."""
    ssim: float
    """Structural similarity inside the mask, mean over samples."""
    r2g_mass: float
    """Share of the unified R2G map (density) that lies inside the mask, mean over samples."""
    mask_area: float
    """Share of the picture that the mask covers: the mass of a map that knows nothing."""
    r2g_imacs: float
    """IMACS of the unified R2G map (density) with the mask, mean over samples."""
    g2r_object_mass: float
    """Share of the unified G2R map (density) that lies on the object in the reference, mean over samples."""
    object_area: float
    """Share of the reference that the object covers."""
    layer_mass: dict[str, float]
    """By layer: share of its R2G map that lies inside the mask, mean over samples."""
    sram_error: dict[str, float]
    """By layer: median distance from the arg-max of the SRAM to the true place in the reference, in patches."""

    @property
    def best_layer(self) -> str:
        """The layer whose SRAM is nearest to the truth."""
        return min(self.sram_error, key=self.sram_error.__getitem__)


def paint(
    pipeline: InpaintPipeline, samples: Samples, *, steps: int = 20, guidance: float = 1.0, seed: int = 0
) -> Tensor:
    """The samples painted in one batch: (sample, 3, row, column) in [-1, 1]."""
    painted: Tensor = pipeline(
        samples.masked_scene,
        samples.mask,
        samples.reference,
        placement=samples.placement,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images
    return painted


def evaluate(
    pipeline: InpaintPipeline, samples: Samples, *, steps: int = 20, guidance: float = 1.0, batch: int = 8
) -> Quality:
    """Paint and record every sample, and measure the pictures and the traces."""
    painted, traces = [], []
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(samples.scene), batch):
            part = samples.part(slice(start, start + batch))
            paths = [Path(folder) / f"{start + number}.zarr" for number in range(len(part.scene))]
            with record(pipeline, paths, mask=list(part.mask[:, 0].bool().numpy())):
                painted.append(paint(pipeline, part, steps=steps, guidance=guidance, seed=start))
            traces += [precompute(path) for path in paths]
        return _quality(samples, torch.cat(painted), traces)


def ablate(
    pipeline: InpaintPipeline, samples: Samples, layers: Iterable[str], *, steps: int = 20, guidance: float = 1.0
) -> dict[str, float]:
    """By layer, how much the PSNR inside the mask falls when its attention gives nothing, in dB, mean over samples."""
    whole = _mean_psnr(paint(pipeline, samples, steps=steps, guidance=guidance), samples)
    falls = {}
    for layer in layers:
        hook = pipeline.denoiser.get_submodule(layer).register_forward_hook(_give_nothing)
        try:
            falls[layer] = whole - _mean_psnr(paint(pipeline, samples, steps=steps, guidance=guidance), samples)
        finally:
            hook.remove()
    return falls


def _give_nothing(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> Any:
    return torch.zeros_like(output) if isinstance(output, Tensor) else tuple(map(torch.zeros_like, output))


def contact_sheet(samples: Samples, painted: Tensor) -> PIL.Image.Image:
    """A column for each sample: the reference, the scene as the model sees it, what it painted, the truth."""
    rows = (samples.reference, samples.masked_scene, painted, samples.scene)
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return PIL.Image.fromarray(((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def true_places(samples: Samples, grid: tuple[int, int], key_grid: tuple[int, int]) -> Tensor:
    """The place in the reference that every query patch comes from, in patches of the key grid.

    Returns
    -------
    Tensor
        float32 (sample, query row, query column, 2): row and column, 0 being the centre of the first key patch. NaN
        for query patches that do not lie wholly inside the mask.
    """
    patch = (samples.size // grid[0], samples.size // grid[1])
    position = F.avg_pool2d(reference_position(samples.placement, samples.size), patch).flip(1).permute(0, 2, 3, 1)
    places = (position + 1) / 2 * torch.tensor(key_grid) - 0.5
    inside = F.avg_pool2d(samples.mask, patch)[:, 0] == 1
    return torch.where(inside[..., None], places, torch.nan)


def untrained(pipeline: InpaintPipeline) -> InpaintPipeline:
    """A pipeline of the same shape whose weights are drawn anew, from torch's global generator."""
    fresh = deepcopy(pipeline)
    for part in fresh.components.values():
        if isinstance(part, ModelMixin):
            part.load_state_dict(type(part).from_config(part.config).state_dict())
    return fresh


def _quality(samples: Samples, painted: Tensor, traces: list[Trace]) -> Quality:
    masks = [xr.DataArray(mask.numpy(), dims=("row", "column")) for mask in samples.mask[:, 0]]
    objects = [xr.DataArray(mask.numpy(), dims=("row", "column")) for mask in samples.object_mask[:, 0]]
    size = (samples.size, samples.size)
    r2g = [ulam(trace, direction="r2g", size=size, density=True).compute() for trace in traces]
    g2r = [ulam(trace, direction="g2r", size=size, density=True).compute() for trace in traces]
    return Quality(
        psnr=_mean_psnr(painted, samples),
        ssim=float(np.mean([_ssim(*one) for one in zip(painted, samples.scene, samples.mask, strict=True)])),
        r2g_mass=float(np.mean([mass(*one) for one in zip(r2g, masks, strict=True)])),
        mask_area=float(samples.mask.mean()),
        r2g_imacs=float(np.mean([imacs(*one) for one in zip(r2g, masks, strict=True)])),
        g2r_object_mass=float(np.mean([mass(*one) for one in zip(g2r, objects, strict=True)])),
        object_area=float(samples.object_mask.mean()),
        layer_mass=_layer_mass(traces, masks),
        sram_error={layer: _sram_error(samples, traces, layer) for layer in traces[0].layers},
    )


def _layer_mass(traces: list[Trace], masks: list[xr.DataArray]) -> dict[str, float]:
    size = (masks[0].sizes["row"], masks[0].sizes["column"])
    maps = [llam(trace, direction="r2g", size=size).compute() for trace in traces]
    return {
        layer: float(np.mean([mass(one.sel(layer=layer), mask) for one, mask in zip(maps, masks, strict=True)]))
        for layer in traces[0].layers
    }


def _sram_error(samples: Samples, traces: list[Trace], layer: str) -> float:
    found = np.stack([correspondence(trace, layers=layer).squeeze("layer").values for trace in traces])
    site_class = traces[0].sel(layer=layer).classes[0].site_class
    key_grid = site_class.key_segments[-1].grid
    assert site_class.query_grid is not None and key_grid is not None  # noqa: PT018
    truth = true_places(samples, site_class.query_grid, key_grid).numpy()
    return float(np.nanmedian(np.linalg.norm(found - truth, axis=-1)))


def _mean_psnr(painted: Tensor, samples: Samples) -> float:
    return float(np.mean([_psnr(*one) for one in zip(painted, samples.scene, samples.mask, strict=True)]))


def _psnr(painted: Tensor, scene: Tensor, mask: Tensor) -> float:
    error = ((painted - scene) ** 2)[mask.expand(3, -1, -1) == 1].mean()
    return float(10 * torch.log10(4 / error))


def _ssim(painted: Tensor, scene: Tensor, mask: Tensor) -> float:
    from skimage.metrics import structural_similarity  # only the evaluation needs it

    _, similarity = structural_similarity(painted.numpy(), scene.numpy(), channel_axis=0, data_range=2, full=True)
    return float(similarity[mask.expand(3, -1, -1).numpy() == 1].mean())


def table(qualities: dict[str, Quality]) -> str:
    """The measurements as a Markdown table."""
    layers = next(iter(qualities.values())).sram_error
    rows = {
        "PSNR inside the mask, dB": [f"{one.psnr:.1f}" for one in qualities.values()],
        "SSIM inside the mask": [f"{one.ssim:.3f}" for one in qualities.values()],
        "R2G mass inside the mask (area)": [f"{one.r2g_mass:.2f} ({one.mask_area:.2f})" for one in qualities.values()],
        "R2G IMACS": [f"{one.r2g_imacs:+.2f}" for one in qualities.values()],
        "G2R mass on the object (area)": [
            f"{one.g2r_object_mass:.2f} ({one.object_area:.2f})" for one in qualities.values()
        ],
        **{
            f"`{_short(layer)}`: SRAM error, patches; R2G mass": [
                f"{one.sram_error[layer]:.2f}; {one.layer_mass[layer]:.2f}" for one in qualities.values()
            ]
            for layer in layers
        },
    }
    lines = [f"| held-out samples | {' | '.join(qualities)} |", "| --- |" + " ---: |" * len(qualities)]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def _short(layer: str) -> str:
    return layer.removesuffix(".transformer_blocks.0.attn2")


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--weights", type=click.Path(exists=True, path_type=Path), help="Another trained pipeline than the bundled."
)
@click.option("--objects", type=click.Path(exists=True, path_type=Path), help="Of `attrace.demo.objects`.")
@click.option("--samples", default=32, help="How many samples to paint.")
@click.option("--steps", default=20, help="DDIM steps.")
@click.option("--guidance", default=1.0, help="Scale of classifier-free guidance.")
@click.option("--seed", default=20_000, help="Of the samples.")
@click.option("--ablate", "ablated", is_flag=True, help="Also paint without the attention of each layer.")
@click.option(
    "--pictures",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw ten samples: reference, scene, result, truth.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of a table.")
def main(
    weights: Path | None,
    objects: Path | None,
    samples: int,
    steps: int,
    guidance: float,
    seed: int,
    ablated: bool,
    pictures: Path | None,
    as_json: bool,
) -> None:
    """Evaluate the trained and an untrained network, and print what was measured."""
    trained = load_pipeline(weights)
    made = held_out_samples(samples, seed, trained.size, Objects.load(objects) if objects else None)
    torch.manual_seed(0)
    pipelines = {"trained": trained, "untrained": untrained(trained)}
    qualities = {name: evaluate(one, made, steps=steps, guidance=guidance) for name, one in pipelines.items()}
    few = made.part(slice(10))
    if pictures:
        contact_sheet(few, paint(trained, few, steps=steps, guidance=guidance)).save(pictures)
    falls = ablate(trained, few, qualities["trained"].sram_error, steps=steps, guidance=guidance) if ablated else {}
    if as_json:
        measured = {name: asdict(quality) for name, quality in qualities.items()}
        click.echo(json.dumps(measured | {"ablation": falls}, indent=2))
        return
    click.echo(table(qualities))
    for layer, fall in falls.items():
        click.echo(f"without `{_short(layer)}`, PSNR of ten samples falls by {fall:.2f} dB")


if __name__ == "__main__":
    main()
