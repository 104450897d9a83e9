"""Printing the numbers of a trace, and reading what they are computed from."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.inputs import read_picture
from attrace.cli.shared.options import box
from attrace.cli.shared.output import print_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attrace.analysis import Trace
    from attrace.analysis.scores.trace_scores import MapScores, TraceScores


def scores_as_json(scores: TraceScores) -> dict[str, Any]:
    """Numbers by name of the map, then those of the picture and of the layers, where there are any."""
    told: dict[str, Any] = {}
    for direction, of_maps in scores.maps.items():
        name = f"ulam_{direction}"
        told[name] = (asdict(scores.cards[name]) if name in scores.cards else {}) | asdict(of_maps)
    if scores.picture is not None:
        told["picture"] = asdict(scores.picture)
    if scores.correspondence:
        told["correspondence_error"] = scores.correspondence
    return told


def print_scores(scores: TraceScores, *, compat: bool = False) -> None:
    """Print tables of the numbers."""
    if scores.cards:
        _print_cards(scores, compat=compat)
        click.echo()
    rows = [["map", "entropy", "tokens", "even", "heads agree", "layers agree", "drift"]]
    rows += [[f"ulam_{direction}", *_map_cells(of_maps)] for direction, of_maps in scores.maps.items()]
    print_table(rows, right=range(1, len(rows[0])))
    if scores.picture is not None:
        _print_picture(asdict(scores.picture))
    if scores.correspondence:
        errors = [[layer, _number(error, 2)] for layer, error in scores.correspondence.items()]
        click.echo()
        print_table([["layer", "correspondence error"], *errors], right=(1,))


def print_csv(scores: TraceScores) -> None:
    """Print one line for each number."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("score", "of", "value", "better"))
    writer.writerows(scores.rows())


def read_truth(file: str, trace: Trace) -> NDArray[np.uint8]:
    """The true picture, with the channels of the generated one: uint8 (row, column[, channel])."""
    import numpy as np

    picture = read_picture(Path(file), "--truth")
    shape = trace.image_shapes.get("generated", (0, 0, 3))
    return np.asarray(picture.convert("L" if len(shape) == 2 else "RGB"))


def read_places(given: str, trace: Trace, mask: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """True places from `mask`, a box, or a file: float64 (row, column, axis)."""
    import numpy as np

    from attrace.analysis.maps.sram import picture_size
    from attrace.analysis.scores.ground_truth import places_of_box
    from attrace.analysis.scores.scorecard import mask_box

    if given.endswith(".npy"):
        try:
            places: NDArray[np.float64] = np.load(given, allow_pickle=False)
        except ValueError as error:
            raise click.BadParameter(f"{given} is no .npy file of numbers", param_hint="--places") from error
        return places
    picture = picture_size(trace)
    if given != "mask":
        return places_of_box(box(given), picture, mask)
    if mask is None:
        raise click.UsageError(f"trace {trace.path} holds no mask: pass --mask FILE, or a box to --places")
    # a box in pixels of the picture, where the mask has another resolution
    scale = np.array(picture * 2) / (mask.shape * 2)
    top, left, bottom, right = np.rint(np.array(mask_box(mask)) * scale).astype(int).tolist()
    return places_of_box((top, left, bottom, right), picture, mask)


def _print_cards(scores: TraceScores, *, compat: bool) -> None:
    rows = [["map", "IMACS", *(["IMACS (i2am)"] if compat else []), "inside", "area", "box", "mask box", "IoU"]]
    for name, card in scores.cards.items():
        rows.append(
            [
                name,
                f"{card.imacs:.3f}",
                *([f"{card.imacs_i2am:.3f}"] if compat else []),
                f"{card.inside:.1%}",
                f"{card.area:.1%}",
                "none" if card.box is None else ",".join(map(str, card.box)),
                ",".join(map(str, card.mask_box)),
                f"{card.iou:.2f}",
            ]
        )
    print_table(rows, right=range(1, len(rows[0])))


def _map_cells(of_maps: MapScores) -> list[str]:
    return [
        f"{of_maps.entropy:.2f}",
        f"{of_maps.effective_tokens:.0f}",
        str(of_maps.cells),
        *(_number(value, 3) for value in (of_maps.head_agreement, of_maps.layer_agreement, of_maps.drift)),
    ]


def _print_picture(picture: dict[str, float | None]) -> None:
    rows = [["picture", "PSNR, dB", "SSIM"]]
    for name, suffix in (("whole", ""), ("inside the mask", "_inside")):
        if picture["psnr" + suffix] is not None:
            similarity = picture["ssim" + suffix]
            shown = "needs attrace[quality]" if similarity is None else _number(similarity, 3)
            rows.append([name, _number(picture["psnr" + suffix], 2), shown])
    if picture["lpips"] is not None:
        rows = [[*row, last] for row, last in zip(rows, ("LPIPS", _number(picture["lpips"], 4), ""), strict=False)]
    click.echo()
    print_table(rows, right=(1, 2, 3))


def _number(value: float | None, digits: int) -> str:
    """A number; a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"
