"""`attrace ablate`: how much each layer or head matters to the picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from attrace.cli.shared.destination import Destination
from attrace.cli.shared.options import CONTEXTS, examples, json_option, overwrite_option
from attrace.cli.shared.output import chunk_progress, print_json, print_table, say
from attrace.cli.shared.recording import Run, pipeline_options, recorder_at_work

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@click.command(
    epilog=examples(
        """attrace ablate --pipeline ./pipeline --class attrace.demo.pipeline:ReferenceInpaintPipeline
--jobs jobs.jsonl --steps 20 --mask mask_image -o effects.nc""",
        """attrace ablate --pipeline ./pipeline --class attrace.demo.pipeline:ReferenceInpaintPipeline
--jobs jobs.jsonl --steps 20 --mask mask_image --heads --layers "mid_block.*" -o heads.nc --into run.zarr""",
    )
)
@click.option("-o", "--output", metavar="PATH", required=True, help="The .nc file to write.")
@click.option("--heads", is_flag=True, help="Take away one head at a time, in place of whole layers.")
@click.option(
    "--baseline",
    type=click.Choice(("zero", "mean")),
    default="zero",
    show_default=True,
    help="What stands in for the output of the attention: zeros, or its mean over the queries.",
)
@click.option(
    "--context", type=click.Choice(CONTEXTS), help="Attention to what; by default to the reference, if there is one."
)
@click.option(
    "--into",
    multiple=True,
    metavar="TRACE",
    help="Keep the effects in this trace, too, for --weights effect; may be repeated.",
)
@click.option("--bootstrap-seed", type=int, default=0, show_default=True, help="Seed of the intervals.")
@pipeline_options
@overwrite_option
@json_option
def ablate(
    jobs: Path | None,
    output: str,
    heads: bool,
    baseline: Literal["zero", "mean"],
    context: Any,
    into: tuple[str, ...],
    bootstrap_seed: int,
    profile: str | None,
    network: str | None,
    key_grid: tuple[int, int] | None,
    layers: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how much each layer or head matters.

    Generates the picture of every input again from the same noise, each time without the attention of one layer (or
    head), and measures how much it changes: the mean absolute and squared difference of pixels, inside the mask where
    there is one, and in all. The effect of a layer is the mean absolute change over the inputs, with a bootstrap
    interval. `--weights effects.nc` of other commands weighs layers and heads by it.

    A layer's attention is taken away by making its output zero (or its mean over the queries); where one softmax runs
    over text, picture and reference, by hiding the reference's keys from the picture.

    A seed is needed. What every run gave is kept in OUTPUT.runs.jsonl until all is written: the same command goes on
    after an interruption.
    """
    target = Destination(output)
    if target.suffix != ".nc":
        raise click.BadParameter(f"expected a name that ends in .nc, found {output}", param_hint="-o")
    target.check(overwrite=overwrite)
    run = Run.of(layers=layers, **options)
    with recorder_at_work("ablate"):
        listed = (run.job(target.beside / "run.zarr"),) if jobs is None else run.jobs(jobs, target.beside)
        for job in listed:
            if job.seed is None:
                raise click.UsageError(f"{job.where}: pass --seed, as every picture is to come from the same noise")
        from attrace.analysis import effects, keep_effects, open_trace
        from attrace.analysis.maps.masks import read_mask
        from attrace.recorder import ablate as measure
        from attrace.recorder.jobs.pipelines import load_pipeline

        traces = [open_trace(one) for one in into]
        pipeline = load_pipeline(**run.loading)
        inputs, masks = [], []
        for job in listed:
            arguments, pictures = job.load()
            inputs.append(arguments | ({} if job.steps is None else {"num_inference_steps": job.steps}))
            masks.append(read_mask(pictures["mask"]) if "mask" in pictures else None)
        kept = target.beside / f"{target.name}.runs.jsonl"
        with chunk_progress("pictures") as progress:
            changes = measure(
                pipeline,
                inputs,
                seeds=[job.seed or 0 for job in listed],
                masks=masks,
                layers=layers or None,
                heads=heads,
                baseline=baseline,
                context=context,
                profile=profile,
                network=network,
                key_grid=key_grid,
                names=[job.output.stem for job in listed],
                kept=kept,
                progress=progress,
            )
    found = effects(changes, seed=bootstrap_seed)
    target.write(lambda path: found.to_netcdf(path, engine="scipy"))
    kept.unlink(missing_ok=True)
    for trace in traces:
        keep_effects(trace, found["effect"])
        say(f"kept the effects in {trace.path}")
    table = _table(found)
    if as_json:
        print_json({"output": output, **found.attrs, "effects": table.to_dict("records")})
        return
    where = "inside the mask" if found.attrs["region"] == "inside" else "in the whole picture"
    say(f"mean absolute change of pixels {where}, of 1, over {len(listed)} inputs")
    labels = [name for name in table.columns if name in ("layer", "head")]
    rows = [
        [*(str(row[name]) for name in labels), *(_number(row[name]) for name in ("effect", "low", "high"))]
        for row in table.to_dict("records")
    ]
    print_table([[*map(str, table.columns)], *rows], right=range(1, len(table.columns)))


def _number(value: float) -> str:
    """A number; a dash where there is none, as for the interval of one input."""
    return "-" if value != value else f"{value:.4f}"


def _table(found: xr.Dataset) -> pd.DataFrame:
    """Effects with their intervals, the largest first."""
    bounds = {bound: found["effect_interval"].sel(bound=bound, drop=True) for bound in ("low", "high")}
    table = found[["effect"]].assign(bounds).to_dataframe().dropna(subset="effect")
    return table.sort_values("effect", ascending=False).reset_index()
