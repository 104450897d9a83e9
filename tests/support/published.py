"""The small trace that tests/data keeps of each version of the format. This wrote `trace-2.0.zip`:

PYTHONPATH=tests python -m support.published tests/data/trace-2.0.zip

`trace-1.0.zip` has the same numbers, under the names that version 1 of the format gave them.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrace.recorder.writing.store import TraceStore
from attrace.schemas import Guidance, KeySegment, Manifest, ModelIdentity, Site, SiteClass
from attrace.schemas.layout import CALLED, DATA_ARRAYS, KEY, KEY_STEP, QUERY, stored_name
from attrace.schemas.manifest import MAJOR

STEPS = 3

FACTORS = SiteClass(
    group="reference/12x5h2d4",
    context="reference",
    encoding="factors",
    dtype="float16",
    heads=2,
    queries=12,
    keys=5,
    features=4,
    scale=0.5,
    query_grid=(3, 4),
    key_segments=(KeySegment(kind="cls", count=1), KeySegment(kind="patch", count=4, grid=(2, 2))),
    has_bias=True,
    has_lse=True,
    sites=(
        Site(path="down.0.attn2", order=0, module="Attention"),
        Site(path="up.0.attn2", order=2, module="Attention"),
    ),
)

SCORES = SiteClass(
    group="text.unconditional/12x3h2d4",
    context="text",
    branch="unconditional",
    encoding="scores",
    dtype="float32",
    heads=2,
    queries=12,
    keys=3,
    features=4,
    scale=0.5,
    key_segments=(KeySegment(kind="text", count=2), KeySegment(kind="pad", count=1)),
    tokens=("a", "naïve 猫", ""),
    sites=(Site(path="mid.attn2", order=1, module="Attention"),),
)

MANIFEST = Manifest(
    id="0123456789abcdef0123456789abcdef",
    status="recording",
    created="2026-01-02T03:04:05Z",
    denoiser=ModelIdentity(class_name="UNet2DConditionModel", config={"sample_size": 4}),
    scheduler=ModelIdentity(class_name="PNDMScheduler"),
    guidance=Guidance(branches=("unconditional", "conditional"), kept=("unconditional", "conditional"), scale=7.5),
    seed=2**63,
    model_dtype="float16",
    image_size=(6, 8),
    call_arguments={"prompt": "a naïve 猫", "eta": 0.0},
    software={"attrace": "0.1.0"},
)


def values(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Whole and half numbers that float16 holds exactly, other ones for each array."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 7 + len(name)) % 17 / 2 - 4).reshape(shape)


def expected_arrays(major: int = MAJOR) -> dict[str, NDArray[Any]]:
    """What is in the trace of a version of the format, by path; NaN where nothing is.

    The keys of the first layer change in step 2, those of the second never do; it is not called in step 1.
    """
    arrays = {
        QUERY: values("query", (STEPS, 2, 2, 12, 4)),
        KEY: values("key", (STEPS, 2, 2, 5, 4)),
        "bias": values("bias", (STEPS, 2, 5)),
        "lse": values("lse", (STEPS, 2, 2, 12)),
    }
    arrays["bias"][:, :, 4] = -np.inf
    for array in arrays.values():
        array[1, 1] = np.nan
    arrays[KEY][1, 0] = np.nan
    arrays[KEY][2, 1] = np.nan
    arrays[KEY_STEP] = np.array([[0, 0], [0, -1], [2, 0]])
    of_root = {"time": np.array([0, 1, 3]), "timestep": np.array([999.0, 500.5, 1.0]), "step_done": np.ones(STEPS)}
    factors = {f"{FACTORS.group}/{stored_name(name, major)}": array for name, array in arrays.items()}
    stored = (
        factors
        | of_root
        | {
            f"{SCORES.group}/scores": values("scores", (STEPS, 1, 2, 12, 3)),
            "images/generated": (values("generated", (6, 8, 3)) * 8 + 32).astype(np.uint8),
        }
    )
    if major == 1:
        return stored
    times = {f"{one.group}/{name}": of_root[name] for one in (FACTORS, SCORES) for name in ("time", "timestep")}
    called = {FACTORS.group: (arrays[KEY_STEP] >= 0).astype(float), SCORES.group: np.ones((STEPS, 1))}
    return stored | times | {f"{group}/{CALLED}": array for group, array in called.items()}


def write_published(path: Path) -> None:
    """Write the trace and pack it."""
    arrays = expected_arrays()
    with tempfile.TemporaryDirectory() as folder:
        store = TraceStore(Path(folder) / "run.zarr", MANIFEST, steps=STEPS + 1)
        store.add_classes((FACTORS, SCORES))
        for step in range(STEPS):
            _write_step(store, FACTORS, arrays, step)
            _write_step(store, SCORES, arrays, step)
            store.finish_step(step, call=int(arrays["time"][step]), timestep=float(arrays["timestep"][step]))
        store.write_image("generated", arrays["images/generated"])
        store.close("complete")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(path for path in store.path.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(store.path))


def _write_step(store: TraceStore, one: SiteClass, arrays: dict[str, NDArray[Any]], step: int) -> None:
    for path, array in arrays.items():
        group, _, name = path.rpartition("/")
        written = group == one.group and name in DATA_ARRAYS - {CALLED}
        for layer in range(len(one.sites)) if written else ():
            part = array[step, layer]
            if not np.isnan(part).all():
                store.write(group, name, step=step, layer=layer, values=part)


if __name__ == "__main__":
    write_published(Path(sys.argv[1]))
