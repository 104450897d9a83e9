"""The second small trace that tests/data keeps, with what the first lacks. This wrote `rich-2.0.zip`:

PYTHONPATH=tests python -m support.published_rich tests/data/rich-2.0.zip

`rich-1.0.zip` has the same numbers, under the names that version 1 of the format gave them.

It was interrupted in its fourth step; computed in bfloat16 and stored as float32; a block of the keys only, with `lse`;
a mask in `bias`; text scores in float64; marginals that were kept.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.maps.precompute import precompute
from attrace.recorder.writing.store import TraceStore
from attrace.schemas import Guidance, KeySegment, Manifest, ModelIdentity, Site, SiteClass

STEPS = 3

JOINT = SiteClass(
    group="reference/12x5h2d4",
    context="reference",
    encoding="factors",
    dtype="float32",
    heads=2,
    queries=12,
    keys=5,
    features=4,
    scale=0.5,
    query_grid=(3, 4),
    key_segments=(KeySegment(kind="patch", count=4, grid=(2, 2)), KeySegment(kind="pad", count=1)),
    has_bias=True,
    has_lse=True,
    sites=(Site(path="blocks.0.attn", order=0), Site(path="blocks.1.attn", order=2)),
)

TEXT = SiteClass(
    group="text/12x3h1d4",
    context="text",
    encoding="scores",
    dtype="float64",
    heads=1,
    queries=12,
    keys=3,
    features=4,
    scale=0.5,
    query_grid=(3, 4),
    key_segments=(KeySegment(kind="text", count=3),),
    tokens=("a", "red", "cat"),
    sites=(Site(path="blocks.0.text", order=1),),
)

MANIFEST = Manifest(
    id="fedcba9876543210fedcba9876543210",
    status="recording",
    created="2026-02-03T04:05:06Z",
    denoiser=ModelIdentity(class_name="FluxTransformer2DModel"),
    guidance=Guidance(scale=3.5),
    seed=7,
    model_dtype="bfloat16",
    device="cuda",
    image_size=(6, 8),
    licence="CC0-1.0",
    citation="A trace to test with.",
    software={"attrace": "0.1.0"},
)


def bfloat16(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values that bfloat16 holds, as float32: the upper half of the bits."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def spread(number: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers from -2 to 2 in no order, exactly the same everywhere."""
    return ((np.arange(np.prod(shape)) * 7919 + number * 104729) % 8191 / 2048 - 2).reshape(shape)


def arrays() -> dict[str, NDArray[Any]]:
    """What is in the trace by path, of four steps, the last of which was not finished."""
    query = bfloat16(spread(1, (STEPS + 1, 2, 2, 12, 4)))
    key = bfloat16(spread(2, (STEPS + 1, 2, 2, 5, 4)))
    bias = np.zeros((STEPS + 1, 2, 5), np.float32)
    bias[..., 1], bias[..., 4] = 0.25, -np.inf
    shown = np.exp(scores(query, key, bias)).sum(axis=-1)
    return {
        f"{JOINT.group}/query_vector": query,
        f"{JOINT.group}/key_vector": key,
        f"{JOINT.group}/bias": bias,
        f"{JOINT.group}/lse": (np.ceil(np.log(shown) * 16 + 8) / 16).astype(np.float32),  # the same on every processor
        f"{TEXT.group}/scores": spread(3, (STEPS + 1, 1, 1, 12, 3)) / 3,
    }


def scores(query: NDArray[Any], key: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float64]:
    """s = scale * q.k + bias, in float64: (time, layer, head, query, key)."""
    products = np.einsum("tlhqf,tlhkf->tlhqk", query.astype(np.float64), key.astype(np.float64))
    return np.asarray(JOINT.scale * products + bias[:, :, None, None, :], np.float64)


def write_rich(path: Path) -> None:
    """Write the trace and pack it."""
    stored = arrays()
    with tempfile.TemporaryDirectory() as folder:
        store = TraceStore(Path(folder) / "run.zarr", MANIFEST, steps=STEPS + 1)
        store.add_classes((JOINT, TEXT))
        for step in range(STEPS + 1):
            for place, values in stored.items():
                group, _, name = place.rpartition("/")
                for layer in range(values.shape[1]):
                    store.write(group, name, step=step, layer=layer, values=values[step, layer])
            for layer in range(len(JOINT.sites)):
                store.write(JOINT.group, "key_step", step=step, layer=layer, values=np.int32(step))
            if step < STEPS:
                store.finish_step(step, call=step, timestep=1.0 - step / 4)
        store.close("interrupted")
        precompute(store.path)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(path for path in store.path.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(store.path))


if __name__ == "__main__":
    write_rich(Path(sys.argv[1]))
