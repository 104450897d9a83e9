"""A list of runs to record, one JSON object a line: read and checked whole before a model is loaded. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from attrace.recorder.writing.folder import check_room
from attrace.recorder.writing.images import check_picture, read_picture
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
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
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
        inputs = {name: _with_files(value, read_picture) for name, value in self.inputs.items()}
        kept = {
            name: inputs[source] if isinstance(source, str) else read_picture(source)
            for name, source in self.pictures.items()
        }
        return inputs, kept

    def anchored(self) -> Job:
        """The job with absolute paths, for a process in another folder."""
        return replace(
            self,
            output=self.output.absolute(),
            inputs={name: _with_files(value, Path.absolute) for name, value in self.inputs.items()},
            pictures={name: _with_files(source, Path.absolute) for name, source in self.pictures.items()},
            save_image=None if self.save_image is None else self.save_image.absolute(),
        )


def job_of(
    members: Mapping[str, Any],
    where: str,
    folder: Path,
    *,
    pictures: Path,
    check: Callable[[Path], None] = check_picture,
) -> Job:
    """A job from its members.

    Parameters
    ----------
    members
        As in a line of a list.
    where
        What messages call it.
    folder
        What `output` and `save_image` are relative to.
    pictures
        What picture files are relative to.
    check
        Raises if a file is no picture.

    Raises
    ------
    InputError
        If it is no job, or a picture cannot be read; with the member.
    """
    line = _line(members)
    if line.output is None and line.id is None:
        raise InputError("output: expected an output, or an id to name it by, found neither")
    inputs = {name: _with_paths(value, pictures) for name, value in line.inputs.items()}
    job = Job(
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
    named = {f"inputs.{name}": value for name, value in inputs.items()}
    for name, value in (named | {name: job.pictures.get(stored) for name, stored in STORED.items()}).items():
        with _at(name):
            _with_files(value, check)
    return job


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
        with _at(where):
            job = job_of(_members(text, defaults or {}), where, folder, pictures=path.parent, check=check)
            _check_output(job)
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
def _at(where: str) -> Iterator[None]:
    """Put the line or the member at fault before the message."""
    try:
        yield
    except (InputError, TraceExistsError) as error:
        raise type(error)(f"{where}: {error}") from error
    except ValueError as error:  # of a name that no file can have
        raise InputError(f"{where}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, found {error.reason} at byte {error.start}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line


def _members(text: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says, and the defaults say of what it lacks."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"expected a JSON object, found {error.msg} at character {error.pos + 1}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"expected a JSON object, found what Python does not read: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"expected a JSON object, found {text[:40]!r}")
    inputs = given.get("inputs", {})
    if isinstance(inputs, dict):
        given = {**defaults, **given, "inputs": {**defaults.get("inputs", {}), **inputs}}
    return given


def _line(members: Mapping[str, Any]) -> _Line:
    try:
        return _Line.model_validate(members)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            raise InputError(f"{name}: expected one of {', '.join(_Line.model_fields)}") from error
        raise InputError(
            f"{name}: {problem['msg'][0].lower()}{problem['msg'][1:]}, found {problem['input']!r}"
        ) from error


def _with_paths(value: JsonValue, folder: Path) -> Any:
    """A value with paths in place of texts such as `@photo.png`."""
    if isinstance(value, str) and value.startswith("@"):
        return folder / value[1:]
    return [_with_paths(one, folder) for one in value] if isinstance(value, list) else value


def _with_files(value: Any, change: Callable[[Path], Any]) -> Any:
    """A value with something else in place of its paths."""
    if isinstance(value, list):
        return [_with_files(one, change) for one in value]
    return change(value) if isinstance(value, Path) else value


def _check_output(job: Job) -> None:
    check_room(job.output, overwrite=True)
    found = stored_manifest(job.output)
    if found is not None and found.status == "complete" and found.seed != job.seed:
        raise TraceExistsError(
            f"{job.output} holds a complete run of seed {found.seed}, not {job.seed}: name another output, or remove it"
        )
