"""`attrace pack`: a trace, or a part of it, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.options import (
    CONTEXTS,
    LocalPath,
    citation_option,
    comma_list,
    examples,
    layers_option,
    licence_option,
    overwrite_option,
    select,
    step_range,
    text_or_file,
    trace_argument,
)
from attrace.cli.shared.output import bytes_text, check_output, chunk_progress, say, show

if TYPE_CHECKING:
    from attrace.analysis.sharing.pack import Without


@click.command(
    epilog=examples(
        "attrace pack run.zarr run.zarr.zip",
        'attrace pack run.zarr small.zip --without images,prompts --layers "up_blocks.*" --steps 0:4',
        'attrace pack run.zarr paper.zip --licence CC-BY-4.0 --citation "A. Author, 2026" --codec auto',
    )
)
@trace_argument
@click.argument("packed", type=LocalPath("pack to a file here, then attrace push it"), metavar="PACKED")
@click.option("--without", type=comma_list, metavar="PART,...", help="Leave out images, prompts or arguments.")
@layers_option
@click.option("--steps", type=step_range, metavar="FIRST:LAST", help="Steps, both ends included.")
@click.option("--context", type=click.Choice(CONTEXTS), help="What the keys are; all by default.")
@click.option("--branch", metavar="NAME", help="Branch of classifier-free guidance; all by default.")
@click.option("--only", type=click.Choice(("derived",)), help="Pack only the maps that attrace precompute made.")
@click.option(
    "--codec", metavar="NAME", help="Compress anew: auto, as recorded by default; zstd-1 to zstd-22; or none."
)
@click.option(
    "--layout",
    type=click.Choice(("recorded", "read")),
    default="recorded",
    show_default=True,
    help="Chunks of one step, as recorded; or of all steps for some queries, from which a patch is read at once.",
)
@licence_option
@citation_option
@overwrite_option
def pack(
    trace: str,
    packed: Path,
    without: tuple[Without, ...] | None,
    layers: tuple[str, ...],
    steps: int | slice | None,
    context: str | None,
    branch: str | None,
    only: str | None,
    citation: str | None,
    **options: Any,
) -> None:
    """Pack a trace, or a part of it, into one zip file.

    Every command reads the file directly, from disk or an address. The file lists what was left out. It is written
    whole or not at all, and the same trace gives the same bytes.
    """
    from attrace.analysis import pack as pack_trace

    check_output(packed, overwrite=options["overwrite"])
    chosen = select(trace, layers=layers, heads=(), steps=steps, context=context, branch=branch, picture=None)
    with chunk_progress("packing") as progress:
        pack_trace(
            chosen,
            packed,
            without=without or (),
            only_derived=only is not None,
            citation=text_or_file(citation),
            progress=progress,
            **options,
        )
    say(bytes_text(packed.stat().st_size))
    show(packed)
