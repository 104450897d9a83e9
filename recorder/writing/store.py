"""Writing a trace: groups, arrays, steps that become visible whole, the manifest last. Needs no torch."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import ArrayLike, NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from attrace.recorder.writing.chunks import ChunkFiles, StepSeries
from attrace.recorder.writing.folder import TraceFolder
from attrace.schemas import (
    ArraySpec,
    InputError,
    Manifest,
    SiteClass,
    Status,
    TraceExistsError,
    TraceNotFoundError,
    class_arrays,
    image_array,
    root_arrays,
)
from attrace.schemas.codecs import Codec, compressor
from attrace.schemas.digest import DOCUMENT, sealed
from attrace.schemas.durable import sync_file, sync_names, sync_tree
from attrace.schemas.layout import (
    CALLED,
    IMAGES,
    KEY_STEP,
    MANIFEST_ATTRIBUTE,
    OUTPUT,
    QUERY,
    ROOT_ATTRIBUTES,
    SCORES,
    STEP_DONE,
    TIME,
    TIMESTEP,
    class_attributes,
    coordinate_values,
)
from attrace.schemas.manifest import utc_now


class TraceStore:
    """A trace that is being written.

    Arrays are preallocated for a number of steps, grown when more come, and cut to the finished ones by `close`. A
    step is visible to readers once `finish_step` returned. A process killed at any moment leaves a readable trace.

    Parameters
    ----------
    path
        Folder of the store; must not exist, unless `overwrite`.
    manifest
        What is known before the first step.
    steps
        Steps to preallocate.
    codec
        Compression of the chunks.
    overwrite
        Replace a trace that is there, once this one is complete; see `TraceFolder`.

    Raises
    ------
    TraceExistsError
        If something is stored at `path` already, or a trace is being recorded there.
    """

    def __init__(
        self, path: Path, manifest: Manifest, *, steps: int = 64, codec: Codec = "auto", overwrite: bool = False
    ) -> None:
        self._folder = TraceFolder(path, overwrite=overwrite)
        self.path = path
        self._device = path.stat().st_dev
        self.manifest = manifest
        self.finished_steps = 0
        self._capacity = steps
        self._codec = codec
        self._classes: dict[str, SiteClass] = {}
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._files: dict[str, ChunkFiles] = {}
        self._series: dict[str, StepSeries] = {}
        try:
            attributes = {MANIFEST_ATTRIBUTE: manifest.to_json(), **ROOT_ATTRIBUTES}
            self._root = zarr.create_group(zarr.storage.LocalStore(path), zarr_format=3, attributes=attributes)
            for spec in root_arrays(steps):
                self._create(self._root, "", spec)
        except BaseException:
            self.discard()
            raise

    def add_classes(self, classes: tuple[SiteClass, ...]) -> None:
        """Create the groups and arrays of site classes, with their coordinates."""
        for site_class in classes:
            group = self._root.require_group(site_class.group).update_attributes(class_attributes(site_class))
            coordinates = coordinate_values(site_class)
            for spec in class_arrays(site_class, self._capacity, closed=False):
                self._create(group, site_class.group, spec)
                if spec.name in coordinates:
                    self._write_whole(site_class.group, spec, coordinates[spec.name])
            self._classes[site_class.group] = site_class
        self.update(classes=tuple(self._classes.values()))

    def write(self, group: str, name: str, *, step: int, layer: int, values: ArrayLike) -> None:
        """Write one (step, layer) of a data array: `values` has the array's dims after time and layer.

        Several threads may write different (step, layer) at once.
        """
        place = f"{group}/{name}"
        if name == KEY_STEP:
            self._series[place].set(step, values, layer)  # in memory until the step is finished
            return
        self._files[place].write((step, layer), values)
        if name in (SCORES, QUERY):
            self._series[f"{group}/{CALLED}"].set(step, 1, layer)

    def write_output(self, group: str, layer: int, weights: ArrayLike) -> None:
        """Write the weights of a layer's output projection: (head, feature, channel)."""
        self._arrays[f"{group}/{OUTPUT}"][layer] = weights

    def finish_step(self, step: int, *, call: int, timestep: float) -> None:
        """Make a step visible, in order and from one thread: what is stored once a step, then the marker."""
        self._require_presence()
        self.require_capacity(step + 1)
        for name, value in ((TIME, call), (TIMESTEP, timestep), (STEP_DONE, 1)):
            self._series[name].set(step, value)
        for series in self._series_marker_last():
            series.write()
        self.finished_steps = max(self.finished_steps, step + 1)

    def write_image(self, name: str, image: NDArray[np.uint8]) -> None:
        """Store a picture: uint8 (row, column, channel), or (row, column) for a mask."""
        self._require_presence()
        spec = image_array(name, image.shape)
        self._create(self._root.require_group(IMAGES), IMAGES, spec)
        self._write_whole(IMAGES, spec, image)

    def update(self, **members: Any) -> None:
        """Change members of the manifest and write it."""
        self._require_presence()
        self.manifest = self.manifest.replace(**members)
        self._write_manifest()

    def close(self, status: Status) -> None:
        """Cut the arrays to the finished steps, write the final manifest and the digest of all metadata, and sync.

        What the trace replaces is removed if it is complete, and brought back otherwise.
        """
        is_complete = False
        try:
            self._close(status)
            is_complete = status == "complete"
        finally:
            self._folder.release(is_complete=is_complete, finished_steps=self.finished_steps)

    def discard(self) -> None:
        """End without closing: the trace stays as a killed recorder leaves it, unless another was there before."""
        self._folder.release(is_complete=False, finished_steps=self.finished_steps)

    def _close(self, status: Status) -> None:
        self._require_presence()
        for files in self._files.values():
            files.remove_from(self.finished_steps)
        self._resize(self.finished_steps)
        self._repeat_times()
        sync_tree(self.path)  # before the manifest says that all is there
        self.manifest = self.manifest.replace(status=status, steps=self.finished_steps, finished=utc_now())
        self._seal()
        sync_file(self.path / DOCUMENT)  # all of it is in there, and nothing else has changed
        sync_names(self.path)
        sync_names(self.path.absolute().parent)  # that there is such a folder

    def require_capacity(self, steps: int) -> None:
        """Make room for at least that many steps."""
        if steps > self._capacity:
            self._resize(max(steps, 2 * self._capacity))

    def _require_presence(self) -> None:
        """Refuse to write into a trace that somebody removed, or replaced by another: zarr would mix the two."""
        try:
            root = (self.path / DOCUMENT).read_bytes()
            # in the moment in which a disk is unmounted a root may be written to the folder below
            is_elsewhere = self.path.stat().st_dev != self._device
        except (FileNotFoundError, NotADirectoryError) as error:
            raise TraceNotFoundError(f"{self.path} vanished while it was being written") from error
        if is_elsewhere:
            raise TraceNotFoundError(f"the disk of {self.path} vanished while it was being written")
        if self.manifest.id.encode() not in root:
            raise TraceExistsError(f"{self.path} was replaced by another recorder while it was being written")

    def _seal(self) -> None:
        """Write the final manifest, copies of all metadata, and the digest of it: all in one file, and at once."""
        paths = ["", *(path for path, _ in self._root.members(max_depth=None))]
        documents = {path: json.loads((self.path / path / DOCUMENT).read_bytes()) for path in paths}
        root = documents.pop("")
        root["attributes"][MANIFEST_ATTRIBUTE] = self.manifest.to_json()
        content = json.dumps(sealed(root, documents, major=self.manifest.major), indent=2)
        sync(self._root.store.set(DOCUMENT, default_buffer_prototype().buffer.from_bytes(content.encode())))

    def _repeat_times(self) -> None:
        """Write the coordinates along time beside the arrays of each class, where xarray looks for them."""
        for spec in root_arrays(self.finished_steps)[:2]:
            values = np.asarray(self._arrays[spec.name][:])
            for group in self._classes:
                create_array(self._root[group], spec, self._codec)  # type: ignore[arg-type]
                self._write_whole(group, spec, values)

    def _resize(self, steps: int) -> None:
        """Write another length along time; no chunk is removed, as zarr would look for each that there could be."""
        for place in self._files:
            array = self._arrays[place]
            sync(array.async_array.resize((steps, *array.shape[1:]), delete_outside_chunks=False))
        self._capacity = steps

    def _create(self, group: zarr.Group, prefix: str, spec: ArraySpec) -> None:
        place = f"{prefix}/{spec.name}".lstrip("/")
        self._arrays[place] = create_array(group, spec, self._codec)
        if spec.dims[0] == "time":
            self._files[place] = ChunkFiles(self.path / place, spec, self._codec)
            if spec.chunks[0] > 1:
                self._series[place] = StepSeries(self._files[place], spec)

    def _write_whole(self, prefix: str, spec: ArraySpec, values: NDArray[Any]) -> None:
        """Write a whole array, also chunks of fill value, which not every pipeline of codecs of zarr writes."""
        ChunkFiles(self.path / prefix / spec.name, spec, self._codec).write_all(values)

    def _series_marker_last(self) -> list[StepSeries]:
        return sorted(self._series.values(), key=lambda series: series is self._series[STEP_DONE])

    def _write_manifest(self) -> None:
        self._root.attrs[MANIFEST_ATTRIBUTE] = self.manifest.to_json()


def create_array(group: zarr.Group, spec: ArraySpec, codec: Codec = "auto") -> zarr.Array[Any]:
    """Create one array of the layout: every chunk is written, also an empty one, and carries a checksum."""
    compression = compressor(codec, spec.dtype, spec.chunks)
    compressors = [] if compression is None else [compression]
    return group.create_array(**spec.creation, compressors=[*compressors, zarr.codecs.Crc32cCodec()])


def new_manifest_fields() -> dict[str, Any]:
    """Identity and start of a recording: `id`, `created`, `status`."""
    return {"id": uuid.uuid4().hex, "created": utc_now(), "status": "recording"}


def as_image(picture: Any, name: str) -> NDArray[np.uint8]:
    """A picture as uint8 (row, column, channel) or (row, column).

    Parameters
    ----------
    picture
        A PIL image, or an array: uint8, bool, or float in [0, 1].
    name
        What it is, for messages.
    """
    mode = getattr(picture, "mode", None)
    if isinstance(mode, str) and mode not in ("1", "L", "RGB", "RGBA"):  # of PIL: palettes, CMYK and so on
        picture = picture.convert("RGBA" if mode in ("LA", "PA") else "RGB")
    array = np.asarray(picture)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(
            f"image {name!r}: expected (row, column) or (row, column, channel) with 1, 3 or 4 channels, "
            f"found shape {array.shape}"
        )
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InputError(f"image {name!r}: expected floats in [0, 1], found {array.min():g} to {array.max():g}")
        return (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"image {name!r}: expected uint8, bool or float pixels, found {array.dtype}")
    return array
