"""`attrace demo`: record the bundled model and draw everything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attrace.cli.shared.options import LocalPath, examples, json_option, overwrite_option
from attrace.cli.shared.output import check_output, dask_progress, print_json, print_paths, say, show
from attrace.cli.shared.recording import recorder_at_work
from attrace.cli.shared.scores import print_scores, scores_as_json

if TYPE_CHECKING:
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

    Paints a reference into a scene, leaves demo.zarr and the pictures of every level and direction in a folder, and
    prints their names and how well the maps keep to the painted region. Needs no GPU and no download.
    """
    from attrace.analysis import open_trace, score_trace
    from attrace.analysis.maps.masks import trace_mask

    path = output / "demo.zarr"
    output.mkdir(parents=True, exist_ok=True)
    check_output(path, overwrite=overwrite)
    with recorder_at_work("demo"):
        from attrace.demo.run import record_demo

        say("recording the bundled model ...")
        record_demo(path, reference=reference, seed=seed, steps=steps, overwrite=overwrite)
    trace = open_trace(path)
    say("drawing every map ...")
    with dask_progress():
        files = [path, *_save_pictures(trace, output, overwrite=overwrite)]
    mask = trace_mask(trace)
    scores = score_trace(trace, {} if mask is None else {"r2g": mask})
    if as_json:
        print_json({"files": [str(file) for file in files], "scores": scores_as_json(scores)})
        return
    print_paths(files)
    show()
    print_scores(scores)


def _save_pictures(trace: Trace, folder: Path, *, overwrite: bool) -> list[Path]:
    """The generated picture as it is, and the figures."""
    from PIL import Image

    from attrace.analysis.figures import save_figures

    generated = folder / "generated.png"
    check_output(generated, overwrite=overwrite)
    figures = save_figures(trace, folder, overwrite=overwrite)
    Image.fromarray(trace.images["generated"].values).save(generated)
    return [generated, *figures]
