"""Hypothesis strategies for manifests, and one small manifest as it lies in a store."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import strategies as st

from attrace.schemas import Encoding, Guidance, KeySegment, Manifest, ModelIdentity, Site, SiteClass
from attrace.schemas.words import CONTEXTS

texts = st.text(max_size=8)
labels = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=8)
branches = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(texts, values, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)


@st.composite
def key_segments(draw: st.DrawFn) -> KeySegment:
    """Patches on a grid, or keys of another kind."""
    if draw(st.booleans()):
        rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        return KeySegment(kind="patch", count=rows * columns, grid=(rows, columns))
    return KeySegment(kind=draw(st.sampled_from(["cls", "text", "pad", "other"])), count=draw(st.integers(1, 9)))


@st.composite
def site_classes(draw: st.DrawFn) -> SiteClass:
    """A site class whose members agree."""
    segments = tuple(draw(st.lists(key_segments(), min_size=1, max_size=3)))
    keys = sum(segment.count for segment in segments)
    grid = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    encodings: tuple[Encoding, ...] = ("scores", "factors")
    encoding = draw(st.sampled_from(encodings))
    context, branch = draw(st.sampled_from(CONTEXTS)), draw(branches)
    paths = draw(st.lists(labels, min_size=1, max_size=3, unique=True))
    return SiteClass(
        group=f"{context}.{branch}/{draw(branches)}",
        context=context,
        branch=branch,
        encoding=encoding,
        dtype=draw(st.sampled_from(["float16", "float32", "float64"])),
        heads=draw(st.integers(1, 99)),
        queries=grid[0] * grid[1],
        keys=keys,
        features=draw(st.integers(1, 999)),
        scale=draw(st.floats(allow_nan=False, allow_infinity=False)),
        query_grid=draw(st.sampled_from([None, grid])),
        key_segments=segments,
        tokens=draw(st.none() | st.lists(texts, min_size=keys, max_size=keys).map(tuple)),
        has_bias=encoding == "factors" and draw(st.booleans()),
        has_lse=draw(st.booleans()),
        sites=tuple(Site(path=path, order=order) for order, path in enumerate(paths)),
    )


identities = st.builds(
    ModelIdentity, class_name=texts, model_id=st.none() | texts, config=st.none() | json_objects, config_hash=st.none()
)

manifests = st.builds(
    Manifest,
    id=st.uuids().map(lambda identifier: identifier.hex),
    status=st.sampled_from(["recording", "complete", "interrupted"]),
    created=st.just("2026-01-02T03:04:05Z"),
    finished=st.sampled_from([None, "2026-01-02T03:04:05.678Z"]),
    steps=st.integers(0, 2**31 - 1),
    denoiser=identities,
    pipeline=st.none() | identities,
    guidance=st.builds(Guidance, branches=st.lists(branches, max_size=3).map(tuple), scale=st.none() | st.just(7.5)),
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    image_size=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    call_arguments=json_objects,
    software=st.dictionaries(texts, texts, max_size=3),
    classes=st.lists(site_classes(), max_size=3, unique_by=lambda site_class: site_class.group).map(tuple),
)
"""Any manifest of this version."""


def small_manifest() -> dict[str, Any]:
    """The JSON of a manifest with one class of two sites, text and padding as keys."""
    return {
        "format": "attrace-trace",
        "version": "2.0",
        "id": "0123456789abcdef0123456789abcdef",
        "status": "complete",
        "created": "2026-01-02T03:04:05Z",
        "denoiser": {"class_name": "UNet2DConditionModel"},
        "classes": [
            {
                "group": "text/16x3h2d8",
                "context": "text",
                "encoding": "factors",
                "dtype": "float16",
                "heads": 2,
                "queries": 16,
                "keys": 3,
                "features": 8,
                "scale": 0.35,
                "query_grid": [4, 4],
                "key_segments": [{"kind": "text", "count": 2}, {"kind": "pad", "count": 1}],
                "tokens": ["a", "cat", ""],
                "sites": [{"path": "down.0.attn2", "order": 0}, {"path": "up.0.attn2", "order": 1}],
            }
        ],
    }
