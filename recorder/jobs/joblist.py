"""A list of runs to record, one JSON object a line: read and checked whole before a model is loaded. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from attrace.recorder.writing.images import check_picture, read_picture
from attrace.recorder.writing.store import check_room
from attrace.schemas import InputError, Manifest, TraceExistsError, TraceFormatError, parse_manifest
from attrace.schemas.layout import MANIFEST_ATTRIBUTE

STORED: Final = {"reference": "reference", "mask": "mask", "scene": "input"}
"""Members of a job that name a picture to keep, and the name of that picture in the trace."""


class _Line(BaseModel):
    """A line of the list."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")] | None = None
    output: Annotated[str, Field(min_length=1)] | None = None
    inputs: dict[str, JsonValue] = {}
    seed: int | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    reference: str | None = None
    mask: str | None = None
    scene: str | None = None
    save_image: str | None = None


@dataclass(frozen=True)
class Job:
    """One run to record."""

    where: str
    """File and line, for messages."""
    output: Path
    """The trace to write."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline's call; a `Path` is a picture that is read when the job begins."""
    seed: int | None = None
    steps: int | None = None
    pictures: Mapping[str, Path | str] = field(default_factory=dict)
    """Pictures to keep in the trace, by their names there: a file, or the name of an input."""
    save_image: Path | None = None
    """Where the generated picture goes too."""

    @property
    def is_complete(self) -> bool:
        """Whether its trace is there and complete."""
        found = stored_manifest(self.output)
        return found is not None and found.status == "complete"

    def load(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the call and pictures to keep, read from their files."""
        inputs = {name: _loaded(value) for name, value in self.inputs.items()}
        kept = {
            name: inputs[source] if isinstance(source, str) else read_picture(source)
            for name, source in self.pictures.items()
        }
        return inputs, kept


def read_jobs(path: Path, folder: Path, defaults: Mapping[str, Any] | None = None) -> tuple[Job, ...]:
    """Read a list of jobs and check all of it.

    Parameters
    ----------
    path
        The list: one JSON object a line, with the members `id` or `output`, `inputs`, `seed`, `steps`, `reference`,
        `mask`, `scene`, `save_image`. A text in `inputs` that begins with `@` is a picture file, relative to the list.
    folder
        Where the traces go: `output` and `save_image` are relative to it; without `output` a job writes `ID.zarr`.
    defaults
        Members for every line that lacks them; `inputs` are merged.

    Raises
    ------
    InputError
        If a line is no job, a picture cannot be read, or two jobs have one output; with the file and the line.
    TraceExistsError
        If something that is no trace, or a complete trace of another seed, is at an output.
    """
    jobs = []
    taken: dict[Path, str] = {}
    check = cache(check_picture)
    for where, text in _lines(path):
        try:
            job = _job(_parsed(text, defaults or {}), where, path.parent, folder)
            for name, file in _files(job):
                with _naming(name):
                    check(file)
            _check_output(job)
        except (InputError, TraceExistsError) as error:
            raise type(error)(f"{where}: {error}") from error
        place = job.output.absolute()
        if place in taken:
            raise InputError(f"{where}: {job.output} is the output of {taken[place]} too: give each job its own")
        taken[place] = where
        jobs.append(job)
    if not jobs:
        raise InputError(f"{path}: expected one job a line, found none")
    return tuple(jobs)


def stored_manifest(path: Path) -> Manifest | None:
    """The manifest of a trace in a folder; None where there is no trace that can be read."""
    try:
        attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
        return parse_manifest(attributes[MANIFEST_ATTRIBUTE], where=str(path))
    except (OSError, ValueError, KeyError, TypeError, TraceFormatError):
        return None


@contextmanager
def _naming(member: str) -> Iterator[None]:
    """Put the member at fault before the message."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{member}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, found {error.reason} at byte {error.start}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line


def _parsed(text: str, defaults: Mapping[str, Any]) -> _Line:
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"expected a JSON object, found {error.msg} at character {error.pos + 1}") from error
    if not isinstance(given, dict):
        raise InputError(f"expected a JSON object, found {text[:40]!r}")
    inputs = given.get("inputs", {})
    if isinstance(inputs, dict):
        given = {**defaults, **given, "inputs": {**defaults.get("inputs", {}), **inputs}}
    try:
        return _Line.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            raise InputError(f"{name}: expected one of {', '.join(_Line.model_fields)}") from error
        raise InputError(
            f"{name}: {problem['msg'][0].lower()}{problem['msg'][1:]}, found {problem['input']!r}"
        ) from error


def _job(line: _Line, where: str, pictures: Path, folder: Path) -> Job:
    if line.output is None and line.id is None:
        raise InputError("output: expected an output, or an id to name it by, found neither")
    inputs = {name: _with_paths(value, pictures) for name, value in line.inputs.items()}
    return Job(
        where=where,
        output=folder / (line.output or f"{line.id}.zarr"),
        inputs=inputs,
        seed=line.seed,
        steps=line.steps,
        pictures={
            stored: given if given in inputs else pictures / given.removeprefix("@")
            for name, stored in STORED.items()
            if (given := getattr(line, name)) is not None
        },
        save_image=None if line.save_image is None else folder / line.save_image,
    )


def _with_paths(value: JsonValue, folder: Path) -> Any:
    """A value with paths in place of texts such as `@photo.png`."""
    if isinstance(value, str) and value.startswith("@"):
        return folder / value[1:]
    return [_with_paths(one, folder) for one in value] if isinstance(value, list) else value


def _loaded(value: Any) -> Any:
    if isinstance(value, Path):
        return read_picture(value)
    return [_loaded(one) for one in value] if isinstance(value, list) else value


def _files(job: Job) -> Iterator[tuple[str, Path]]:
    """Every picture file of a job and the member that names it."""
    for name, value in job.inputs.items():
        yield from (
            (f"inputs.{name}", one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, Path)
        )
    names = {stored: name for name, stored in STORED.items()}
    yield from ((names[stored], source) for stored, source in job.pictures.items() if isinstance(source, Path))


def _check_output(job: Job) -> None:
    check_room(job.output, overwrite=True)
    found = stored_manifest(job.output)
    if found is not None and found.status == "complete" and found.seed != job.seed:
        raise TraceExistsError(
            f"{job.output} holds a complete run of seed {found.seed}, not {job.seed}: name another output, or remove it"
        )
