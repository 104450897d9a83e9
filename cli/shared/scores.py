"""Printing the numbers of a trace, and reading what they are computed from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.inputs import read_picture
from attrace.cli.shared.options import box
from attrace.cli.shared.output import print_csv, print_table, say, show

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray

    from attrace.analysis import Trace
    from attrace.analysis.scores.matches import Matches


def scores_as_json(scores: xr.Dataset) -> dict[str, Any]:
    """Numbers by name of the map, then those of the picture and of the layers, where there are any."""
    from attrace.analysis.scores.trace_scores import CORRESPONDENCE_SCORES, PICTURE_SCORES, scores_by_direction

    told: dict[str, Any] = {}
    for direction, of_map in scores_by_direction(scores).items():
        numbers = {str(name): _plain(values) for name, values in of_map.data_vars.items()}
        told[f"ulam_{direction}"] = {"map": str(of_map["map"].values)} | numbers
    picture = {name: scores[name].item() for name in PICTURE_SCORES if name in scores}
    if picture:
        told["picture"] = picture
    for name in CORRESPONDENCE_SCORES:
        if name in scores:
            told[name] = dict(zip(scores["layer"].values.tolist(), scores[name].values.tolist(), strict=True))
    if "matches" in scores.attrs:
        told["matches"] = scores.attrs["matches"]
    return told


def print_scores(scores: xr.Dataset, code: str | None = None) -> None:
    """Print tables of the numbers, with the IMACS of a published code where it is named."""
    from attrace.analysis.scores.trace_scores import scores_by_direction

    maps = scores_by_direction(scores)
    masked = {direction: of_map for direction, of_map in maps.items() if "imacs" in of_map}
    if masked:
        imacs = {"IMACS": "imacs"} | ({} if code is None else {f"IMACS ({code})": f"imacs_{code.replace('-', '_')}"})
        rows = [["map", *imacs, "inside", "area", "box", "mask box", "IoU"]]
        for direction, one in masked.items():
            numbers = [f"{float(one[name]):.3f}" for name in imacs.values()]
            shares = [f"{float(one[name]):.1%}" for name in ("inside", "area")]
            boxes = [_box_text(one[name]) for name in ("box", "mask_box")]
            rows.append([_map_text(direction, one), *numbers, *shares, *boxes, f"{float(one['iou']):.2f}"])
        print_table(rows, right=range(1, len(rows[0])))
        show()
    rows = [["map", "entropy", "tokens", "even", "heads agree", "layers agree", "drift"]]
    for direction, one in maps.items():
        sharp = [f"{float(one['entropy']):.2f}", f"{float(one['effective_tokens']):.0f}", f"{int(one['cells'])}"]
        alike = [_number(float(one[name]), 3) for name in ("head_agreement", "layer_agreement", "drift")]
        rows.append([_map_text(direction, one), *sharp, *alike])
    print_table(rows, right=range(1, len(rows[0])))
    if "psnr" in scores:
        _print_picture(scores)
    if "correspondence_error" in scores:
        columns = [scores[name].values.tolist() for name in ("layer", "correspondence_error", "pck")]
        rows = [[layer, _number(error, 2), _number(share, 2)] for layer, error, share in zip(*columns, strict=True)]
        show()
        print_table([["layer", "correspondence error", "PCK"], *rows], right=(1, 2))
        if "matches" in scores.attrs:
            say(f"{scores.attrs['matches']} points of both pictures match")


def print_scores_csv(scores: xr.Dataset) -> None:
    """Print one line for each number."""
    from attrace.analysis.scores.trace_scores import Score, score_table

    print_csv(Score._fields, score_table(scores))


def read_truth(file: str, trace: Trace) -> NDArray[np.uint8]:
    """The true picture, with the channels of the generated one: uint8 (row, column[, channel])."""
    import numpy as np

    picture = read_picture(Path(file), "--truth")
    shape = trace.image_shapes.get("generated", (0, 0, 3))
    return np.asarray(picture.convert("L" if len(shape) == 2 else "RGB"))


def read_places(given: str, trace: Trace, mask: NDArray[np.bool_] | None) -> NDArray[np.float64] | Matches:
    """True places from `mask`, `matches`, a box, or a file: float64 (row, column, axis), or matched points."""
    import numpy as np

    from attrace.analysis.maps.sram import picture_size
    from attrace.analysis.scores.ground_truth import places_of_box, places_of_mask
    from attrace.analysis.scores.matches import match_pictures

    if given == "matches":
        return match_pictures(trace)
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
    return places_of_mask(trace, mask)


def _map_text(direction: str, of_map: xr.Dataset) -> str:
    return f"ulam_{direction} ({of_map['map'].values})"


def _plain(values: xr.DataArray) -> Any:
    """A number, or a box as whole numbers, None where there is none."""
    if values.ndim == 0:
        return int(values) if values.name == "cells" else values.item()
    return None if bool(values.isnull().any()) else values.astype(int).values.tolist()


def _box_text(box: xr.DataArray) -> str:
    found = _plain(box)
    return "none" if found is None else ",".join(map(str, found))


def _print_picture(scores: xr.Dataset) -> None:
    rows = [["picture", "PSNR, dB", "SSIM"]]
    for name, suffix in (("whole", ""), ("inside the mask", "_inside")):
        if f"psnr{suffix}" in scores:
            known = f"ssim{suffix}" in scores
            similarity = _number(float(scores[f"ssim{suffix}"]), 3) if known else "needs attrace[quality]"
            rows.append([name, _number(float(scores[f"psnr{suffix}"]), 2), similarity])
    if "lpips" in scores:
        last = ("LPIPS", _number(float(scores["lpips"]), 4), "")
        rows = [[*row, one] for row, one in zip(rows, last, strict=False)]
    show()
    print_table(rows, right=(1, 2, 3))


def _number(value: float, digits: int) -> str:
    """A number; a dash where there is none."""
    return "-" if value != value else f"{value:.{digits}f}"
