"""`attrace info`: what was recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.options import examples, json_option, trace_argument
from attrace.cli.shared.output import bytes_text, print_json, print_table, show
from attrace.cli.shared.sizes import stored_sizes

if TYPE_CHECKING:
    from attrace.analysis import Trace
    from attrace.schemas import SiteClass


@click.command(
    epilog=examples("attrace info run.zarr", "attrace info run.zarr --layers", "attrace info run.zarr --json")
)
@trace_argument
@click.option("--layers", "with_layers", is_flag=True, help="List every layer, with the label that selects it.")
@json_option
def info(trace: str, with_layers: bool, as_json: bool) -> None:
    """Show what a trace holds.

    Lists the model, steps, layers by class, encodings, sizes and pictures. Reads metadata only.
    """
    from attrace.analysis import open_trace

    opened = open_trace(trace)
    sizes = stored_sizes(opened, ["images", *(one.group for one in opened.manifest.classes)])
    if as_json:
        print_json(_as_json(opened, sizes))
        return
    _print_facts(opened, sizes)
    _print_classes(opened, sizes)
    if with_layers:
        _print_layers(opened)
        _print_left_out(opened)


def _as_json(trace: Trace, sizes: dict[str, int] | None) -> dict[str, Any]:
    return {
        "path": trace.path,
        "status": trace.status,
        "finished_steps": trace.steps,
        "timesteps": trace.timesteps,
        "bytes": None if sizes is None else sum(sizes.values()),
        "bytes_by_group": sizes,
        "images": {name: list(shape) for name, shape in trace.image_shapes.items()},
        "manifest": trace.manifest.to_json(),
    }


def _print_facts(trace: Trace, sizes: dict[str, int] | None) -> None:
    from attrace.analysis.trace.summary import facts

    size = "" if sizes is None else bytes_text(sum(sizes.values()))
    for name, value in facts(trace, size=size).items():
        show(f"{name:<10} {value}")


def _print_classes(trace: Trace, sizes: dict[str, int] | None) -> None:
    from attrace.analysis.trace.summary import stored_as

    rows = [["group", "context", "branch", "layers", "heads", "queries", "keys", "stored as", "size"]]
    for one in trace.manifest.classes:
        size = "" if sizes is None else bytes_text(sizes.get(one.group, 0))
        rows.append(
            [
                one.group,
                one.context,
                one.branch,
                str(len(one.sites)),
                str(one.heads),
                _grid(one.queries, one.query_grid),
                _keys(one),
                stored_as(one),
                size,
            ]
        )
    show()
    print_table(rows, right=(3, 4, 8))


def _print_layers(trace: Trace) -> None:
    from attrace.schemas.layers import short_labels

    found = [(site, one.group) for one in trace.manifest.classes for site in one.sites]
    found.sort(key=lambda row: row[0].order)
    paths = list(dict.fromkeys(site.path for site, _ in found))
    labels = dict(zip(paths, short_labels(paths), strict=True))
    rows = [["order", "label", "layer", "module", "group"]]
    rows += [[str(site.order), labels[site.path], site.path, site.module, group] for site, group in found]
    show()
    print_table(rows, right=(0,))


def _print_left_out(trace: Trace) -> None:
    """What the recording left out, and why; traces of earlier recorders do not tell."""
    left_out = trace.manifest.capture.get("left_out")
    if not isinstance(left_out, dict) or not left_out:
        return
    rows = [["not recorded", "why"]]
    rows += [[str(path), reason] for reason, paths in left_out.items() for path in _items(paths)]
    show()
    print_table(rows)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _grid(count: int, grid: tuple[int, int] | None) -> str:
    return f"{grid[0]}x{grid[1]}" if grid else str(count)


def _keys(one: SiteClass) -> str:
    return " + ".join(f"{_grid(segment.count, segment.grid)} {segment.kind}" for segment in one.key_segments)
