"""`attrace demo`: record the bundled model and draw everything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attrace.cli.shared.options import LocalPath, examples, json_option, overwrite_option
from attrace.cli.shared.output import check_output, dask_progress, print_json, print_table, say, show
from attrace.cli.shared.recording import recorder_at_work
from attrace.cli.shared.scores import scores_as_json

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis import Trace


@click.command(epilog=examples("attrace demo -o demo", "attrace demo -o mine --reference photo.png --seed 1"))
@click.option("-o", "--output", type=LocalPath(), required=True, help="Folder to make.")
@click.option("--reference", type=click.Path(path_type=Path), metavar="PICTURE", help="A picture of your own to paint.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Steps of the sampler.")
@overwrite_option
@json_option
def demo(output: Path, reference: Path | None, seed: int, steps: int, overwrite: bool, as_json: bool) -> None:
    """Record the bundled model and draw every map.

    Paints a reference into a scene and leaves in a folder: the trace demo.zarr, the maps of every level and direction
    as pictures, and report.html to explore the attention in a browser. Takes about a minute on two cores, and needs no
    GPU and no download.
    """
    from attrace.analysis import open_trace, score_trace, write_report

    path = output / "demo.zarr"
    output.mkdir(parents=True, exist_ok=True)
    check_output(path, overwrite=overwrite)
    with recorder_at_work("demo"):
        from attrace.demo.run import record_demo

        say("painting the reference into the scene, and recording the attention ...")
        record_demo(path, reference=reference, seed=seed, steps=steps, overwrite=overwrite)
    trace = open_trace(path)
    say("drawing every map ...")
    with dask_progress():
        files = [path, *_save_pictures(trace, output, overwrite=overwrite)]
        files.append(write_report(trace, output / "report.html", overwrite=overwrite).path)
    scores = score_trace(trace)
    if as_json:
        print_json({"files": [str(file) for file in files], "scores": scores_as_json(scores)})
        return
    _print_files(trace, output)
    show()
    _print_numbers(scores)
    show()
    show(f"To explore it, open {output / 'report.html'} in a browser. Every number: attrace score {path}")


def _print_files(trace: Trace, folder: Path) -> None:
    counts = f"{trace.steps} steps, {len(trace.layers)} layers, {len(trace.heads)} heads"
    rows = [
        ["file", "what it is"],
        [str(folder / "demo.zarr"), f"the trace: all attention to the reference ({counts})"],
        [str(folder / "report.html"), "the explorer: point at a patch to see where the model looked for it"],
        [str(folder / "generated.png"), "the painted picture"],
        [str(folder / "*_r2g.png"), "maps over the painted picture: where the reference acts"],
        [str(folder / "*_g2r.png"), "maps over the reference: which parts of it are used"],
    ]
    print_table(rows)


def _print_numbers(scores: xr.Dataset) -> None:
    """Print the numbers that need the least explanation, each beside one to compare it with."""
    from attrace.analysis.scores.trace_scores import scores_by_direction

    r2g = scores_by_direction(scores).get("r2g")
    rows = [["of the run", "value", "compare"]]
    if r2g is not None and "imacs" in r2g:
        shares = [f"{float(r2g[name]):.1%}" for name in ("inside", "area")]
        rows.append(["attention that acts inside the painted region", shares[0], f"{shares[1]} if it were even"])
        rows.append(
            [
                f"IMACS of that map, ulam_r2g ({r2g['map'].values})",
                f"{float(r2g['imacs']):.3f}",
                "-3 to 1, higher is better",
            ]
        )
    if "psnr_inside" in scores:
        rows.append(
            [
                "PSNR of the painted region against the truth",
                f"{float(scores['psnr_inside']):.1f} dB",
                "higher is better",
            ]
        )
    print_table(rows, right=(1,))


def _save_pictures(trace: Trace, folder: Path, *, overwrite: bool) -> list[Path]:
    """The generated picture as it is, and the figures."""
    from PIL import Image

    from attrace.analysis.figures import save_figures

    generated = folder / "generated.png"
    check_output(generated, overwrite=overwrite)
    figures = save_figures(trace, folder, overwrite=overwrite)
    Image.fromarray(trace.images["generated"].values).save(generated)
    return [generated, *figures]
