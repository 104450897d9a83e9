"""What a trace is: words, manifest, store layout, versions. Needs NumPy and pydantic only."""

from attrace.schemas.errors import (
    AttraceError,
    CaptureError,
    InputError,
    InputTypeError,
    SelectionError,
    SizeLimitError,
    TraceExistsError,
    TraceFormatError,
    TraceNotFoundError,
    TraceVersionError,
)
from attrace.schemas.layout import ArraySpec, class_arrays, class_group, derived_arrays, image_array, root_arrays
from attrace.schemas.manifest import (
    FORMAT,
    VERSION,
    Guidance,
    KeySegment,
    Manifest,
    ModelIdentity,
    Omitted,
    Site,
    SiteClass,
)
from attrace.schemas.validation import parse_manifest, terms_of_use
from attrace.schemas.words import Context, Direction, Encoding, KeyKind, Level, Status

__all__ = [
    "FORMAT",
    "VERSION",
    "ArraySpec",
    "AttraceError",
    "CaptureError",
    "Context",
    "Direction",
    "Encoding",
    "Guidance",
    "InputError",
    "InputTypeError",
    "KeyKind",
    "KeySegment",
    "Level",
    "Manifest",
    "ModelIdentity",
    "Omitted",
    "SelectionError",
    "Site",
    "SiteClass",
    "SizeLimitError",
    "Status",
    "TraceExistsError",
    "TraceFormatError",
    "TraceNotFoundError",
    "TraceVersionError",
    "class_arrays",
    "class_group",
    "derived_arrays",
    "image_array",
    "parse_manifest",
    "root_arrays",
    "terms_of_use",
]
