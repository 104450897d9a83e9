"""Runs with hidden patches whose results are kept, so that a test that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from attrace.recorder.jobs.faithfulness import Fill, regenerate
from attrace.recorder.jobs.joblist import Job
from attrace.schemas import CaptureError
from attrace.schemas.durable import sync_file

Cells = NDArray[np.bool_]
"""Patches to hide: (row, column)."""


@dataclass(frozen=True)
class Recorded:
    """What runs with hidden patches are compared with."""

    id: str
    """Of the trace."""
    picture: NDArray[np.uint8]
    """The picture that was generated while it was recorded."""


def hidden_changes(
    load: Callable[[], Any],
    job: Job,
    recorded: Recorded,
    hidden: Iterable[Cells],
    measure: Callable[[NDArray[np.uint8]], float],
    *,
    fill: Fill = "mean",
    measured: str = "",
) -> list[float]:
    """What hiding patches of an input's reference changes, for each choice of patches.

    Every result is kept at once in `NAME.hidden.jsonl` beside the trace `NAME.zarr`, and taken from there as long as
    the trace, the inputs, the hidden patches, the fill and the measure are the same. Where runs are left to do, one
    with nothing hidden comes first: its picture must be the recorded one, which shows that the model is the same, too.

    Parameters
    ----------
    load
        Gives the pipeline; called if there is a run left to do.
    job
        The input, with a seed and the reference among its inputs.
    recorded
        What was recorded of it.
    hidden
        Patches to hide.
    measure
        Change of a picture.
    fill
        As for `hide`.
    measured
        Name of the measure.

    Raises
    ------
    CaptureError
        If the model gives another picture than the recorded one.
    """
    inputs, _ = job.load()
    kept = KeptChanges(job.output.with_suffix(".hidden.jsonl"))
    reference = str(job.pictures["reference"])
    facts = {
        "trace": recorded.id,
        "inputs": digest_of_inputs(inputs),
        "reference": reference,
        "seed": job.seed,
        "steps": job.steps,
        "fill": fill,
        "measured": measured,
    }
    choices = [(_key(facts, cells), cells) for cells in hidden]
    left = {key: cells for key, cells in choices if key not in kept.changes}
    if left:
        assert job.seed is not None  # the caller refuses a job without one
        nothing = np.zeros_like(choices[0][1])
        shown = regenerate(
            load(), inputs, reference, [nothing, *left.values()], seed=job.seed, steps=job.steps, fill=fill
        )
        _require_recorded(next(shown), recorded, job)
        for (key, cells), picture in zip(left.items(), shown, strict=True):
            kept.add(key, measure(picture), hidden=int(cells.sum()), fill=fill)
    return [kept.changes[key] for key, _ in choices]


class KeptChanges:
    """Results of runs in a file, a line of JSON each; a line that was cut off does not count.

    Parameters
    ----------
    path
        The file, which may not be there yet; None keeps the results in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.changes: dict[str, float] = {} if path is None else dict(filter(None, map(_parsed, _lines(path))))

    def add(self, key: str, change: float, **facts: Any) -> None:
        """Keep a result, and make it last; the facts are for people."""
        self.changes[key] = change
        if self._path is None:
            return
        torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n") and self._path.stat().st_size > 0
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps({"run": key, **facts, "change": change}) + "\n")
        sync_file(self._path)


def digest_of_inputs(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of what goes into a call: the values of pictures, arrays and tensors, the text of everything else."""
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        digest.update(json.dumps(name).encode())
        _add_value(digest, value)
    return digest.hexdigest()


def _add_value(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, list | tuple):
        digest.update(f"[{len(value)}]".encode())
        for one in value:
            _add_value(digest, one)
    elif isinstance(value, Mapping):
        digest.update(digest_of_inputs({str(name): one for name, one in value.items()}).encode())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
    elif isinstance(value, PIL.Image.Image):
        digest.update(json.dumps([value.mode, *value.size]).encode() + value.tobytes())
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    else:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode())


def _key(facts: Mapping[str, Any], cells: Cells) -> str:
    described = json.dumps([facts, cells.shape, np.packbits(cells).tobytes().hex()], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def _require_recorded(picture: NDArray[np.uint8], recorded: Recorded, job: Job) -> None:
    if not np.array_equal(picture, recorded.picture):
        raise CaptureError(
            f"{job.where}: the model gives another picture than in {job.output} from the same noise and inputs, so "
            "that nothing can be learned from a change: remove that trace if another model or other inputs made it, "
            "else run on a device and with settings that repeat"
        )


def _lines(path: Path) -> Sequence[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else ()


def _parsed(line: str) -> tuple[str, float] | None:
    try:
        row = json.loads(line)
        return str(row["run"]), float(row["change"])
    except (ValueError, KeyError, TypeError):
        return None
