"""Where recorded steps end up: the store of every sample. Runs on the writer's threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from attrace.recorder.writing.images import Images, Picture
from attrace.recorder.writing.plan import Place
from attrace.recorder.writing.store import TraceStore
from attrace.schemas import SiteClass, SizeLimitError, Status
from attrace.schemas.layout import KEY, KEY_STEP, QUERY, VALUE, is_of_keys

logger = logging.getLogger("attrace")


class Values(Protocol):
    """An array that may still be on its way."""

    @property
    def nbytes(self) -> int:
        """Its bytes."""

    def numpy(self) -> NDArray[Any]:
        """The array, once it is there."""


class TraceSink:
    """Writes what a batch's denoiser computed, one store for each sample.

    Parameters
    ----------
    stores
        One for each sample.
    limit_bytes
        Bytes that their arrays may take together, before compression.
    """

    def __init__(self, stores: Sequence[TraceStore], limit_bytes: int | None = None) -> None:
        self.stores = tuple(stores)
        self.bytes_written = 0
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self.non_finite: dict[str, int] = {}
        """Step in which a site, by path, first had a value that is not finite."""
        self._keys: dict[tuple[int, Place], tuple[dict[str, NDArray[Any]], int]] = {}
        """Keys and values that were last written, and the step."""

    def begin(
        self,
        classes: Sequence[tuple[SiteClass, ...]],
        steps: int,
        members: Mapping[str, Any],
        outputs: Mapping[Place, Values],
    ) -> None:
        """Create the groups of each sample, with room for that many steps, and complete its manifest.

        `outputs` are the weights of output projections, (head, feature, channel).
        """
        for store, site_classes in zip(self.stores, classes, strict=True):
            store.require_capacity(steps)
            store.update(**members)
            store.add_classes(site_classes)
        for place, weights in outputs.items():
            for store in self.stores:
                self._count(weights.nbytes, 0)
                store.write_output(place.group, place.layer, weights.numpy())

    def write_site(self, step: int, path: str, place: Place, parts: Mapping[str, Values]) -> None:
        """Write one site of one step: each part has the samples first, and then the dims of its array."""
        for name, values in parts.items():
            arrays = values.numpy()
            if path not in self.non_finite and not _is_sound(name, arrays):
                self.non_finite[path] = step
                logger.warning("%s: values that are not finite, first in step %d", path, step)
            for sample, array in enumerate(arrays):
                if not is_of_keys(name):
                    self._write(sample, name, step, place, array)
        of_keys = {name: values.numpy() for name, values in parts.items() if is_of_keys(name)}
        for sample in range(len(self.stores) if of_keys else 0):
            self._write_keys(sample, step, place, {name: arrays[sample] for name, arrays in of_keys.items()})

    def finish_step(self, step: int, *, call: int, timestep: Values) -> None:
        """Make a step visible in every store."""
        value = float(timestep.numpy().reshape(-1)[0])
        for store in self.stores:
            store.finish_step(step, call=call, timestep=value)

    def close(self, status: Status, images: Images, notes: Sequence[str], tiles: Mapping[str, tuple[int, int]]) -> None:
        """Store the pictures, complete the manifests and close the stores.

        Parameters
        ----------
        status
            How the recording ended.
        images
            The pictures of every sample.
        notes
            What a reader should know.
        tiles
            Row and column of the tile that a call worked at, by the number of the call; none where there are no tiles.

        Raises
        ------
        Exception
            The first that kept a store from being closed; the others are closed.
        """
        problems = []
        for sample, store in enumerate(self.stores):
            try:
                self._close(store, status, images.of(sample), notes, tiles)
            except Exception as problem:
                problems.append(problem)
        if problems:
            raise problems[0]

    def _close(
        self,
        store: TraceStore,
        status: Status,
        images: Mapping[str, Picture],
        notes: Sequence[str],
        tiles: Mapping[str, tuple[int, int]],
    ) -> None:
        ended: Status = "interrupted"
        try:
            for name, picture in images.items():
                store.write_image(name, picture)
            size = images["generated"].shape[:2] if "generated" in images else None
            non_finite = [
                f"{path}: values that are not finite, first in step {step}" for path, step in self.non_finite.items()
            ]
            found: dict[str, Any] = {"warnings": [*notes, *non_finite]}
            if tiles:
                found["tiles"] = {call: list(place) for call, place in tiles.items()}
            store.update(image_size=size, capture=store.manifest.capture | found)
            ended = status
        finally:
            store.close(ended)

    def _write_keys(self, sample: int, step: int, place: Place, arrays: dict[str, NDArray[Any]]) -> None:
        """Write keys and values only if one of them differs, in any bit, from those that were last written."""
        last = self._keys.get((sample, place))
        if last is None or not all(
            np.array_equal(last[0][name].view(np.uint8), arrays[name].view(np.uint8)) for name in arrays
        ):
            last = (arrays, step)
            self._keys[sample, place] = last
            for name, array in arrays.items():
                self._write(sample, name, step, place, array)
        self._write(sample, KEY_STEP, step, place, np.asarray(last[1], np.int32))

    def _write(self, sample: int, name: str, step: int, place: Place, values: NDArray[Any]) -> None:
        self._count(values.nbytes, step)
        self.stores[sample].write(place.group, name, step=step, layer=place.layer, values=values)

    def _count(self, nbytes: int, step: int) -> None:
        """Count bytes that are about to be written in a step.

        Raises
        ------
        SizeLimitError
            If they are more than the limit allows.
        """
        with self._lock:
            if self._limit_bytes is not None and self.bytes_written + nbytes > self._limit_bytes:
                raise SizeLimitError(
                    f"the recording reached its limit of {self._limit_bytes} bytes in step {step}; the steps before it "
                    "are kept: select fewer layers= or steps=, or raise limit_bytes="
                )
            self.bytes_written += nbytes


def _is_sound(name: str, values: NDArray[Any]) -> bool:
    """Whether values are as a model in order makes them; a mask is -inf where a key may not be attended to."""
    return bool(np.isfinite(values).all() if name in (QUERY, KEY, VALUE) else (values < np.inf).all())
