"""Reading a manifest that somebody else wrote: clear errors instead of tracebacks."""

from __future__ import annotations

import json
import re
import reprlib
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from attrace.schemas.errors import InputError, TraceFormatError, TraceVersionError
from attrace.schemas.manifest import FORMAT, MAJOR, VERSION, Label, Manifest, Text


def parse_manifest(value: Any, *, where: str) -> Manifest:
    """The manifest held in the attributes of a store.

    Types are checked strictly, as JSON: a number in quotes is not a number.

    Parameters
    ----------
    value
        What the attribute holds, from JSON.
    where
        Name of the trace, for messages.

    Raises
    ------
    TraceVersionError
        If the major version is newer than this reader's.
    TraceFormatError
        If it is no manifest, or one that breaks the schema.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise TraceFormatError(
            f"{where} is not an attrace trace: expected a Zarr group whose attribute 'attrace' has format {FORMAT!r}, "
            f"found {_summary(value)}"
        )
    _check_version(value.get("version"), where)
    try:
        return Manifest.model_validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        problems = "; ".join(_problem(problem) for problem in error.errors(include_input=False)[:5])
    except (ValueError, TypeError, RecursionError) as error:
        problems = f"expected plain JSON, found {error}"
    raise TraceFormatError(f"the manifest of {where} breaks the format: {problems}")


def terms_of_use(licence: str | None, citation: str | None) -> dict[str, str]:
    """Members of a manifest that say how a trace may be used and cited: those that are given, checked.

    Raises
    ------
    InputError
        If the licence is no line of text, or the citation is too long or no printable text.
    """
    kinds = {"licence": TypeAdapter(Label), "citation": TypeAdapter(Text)}
    given = {name: text for name, text in (("licence", licence), ("citation", citation)) if text is not None}
    for name, text in given.items():
        try:
            kinds[name].validate_python(text)
        except ValidationError as error:
            raise InputError(f"{name}: {error.errors()[0]['msg']}; found {reprlib.repr(text)}") from error
    return given


def _check_version(version: Any, where: str) -> None:
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", version):
        raise TraceFormatError(f"the manifest of {where} has version {reprlib.repr(version)}, expected 'major.minor'")
    if int(version.partition(".")[0]) > MAJOR:
        raise TraceVersionError(
            f"{where} is written in version {version} of the trace format; this attrace reads up to {VERSION}: "
            "upgrade attrace to open it"
        )


def _problem(problem: ErrorDetails) -> str:
    place = ".".join(map(str, problem["loc"])) or "manifest"
    return f"{place[:200]}: {problem['msg'][:200]}"


def _summary(value: Any) -> str:
    if value is None:
        return "no such attribute"
    if isinstance(value, dict):
        return f"format {reprlib.repr(value.get('format'))}"
    return f"a {type(value).__name__}"
