"""Pseudo-correspondences: which points of the generated picture show which points of the reference, by a matcher."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.maps.masks import coverage, trace_mask
from attrace.schemas import InputError

if TYPE_CHECKING:
    from attrace.analysis.trace.trace import Trace

LEAST: Final = 8
"""Matches below which nothing is said."""

RATIO: Final = 0.8
"""Largest distance of the nearest descriptor as a share of that of the second nearest (Lowe, 2004)."""

RESIDUAL: Final = 0.03
"""Largest distance of a match from the common affine transform, as a share of the longer side of the reference."""


@dataclass(frozen=True)
class Matches:
    """Matched points of two pictures."""

    generated: NDArray[np.float64]
    """(match, axis): row and column in the generated picture, as shares of its height and width."""
    reference: NDArray[np.float64]
    """The same in the reference."""

    def __len__(self) -> int:
        return len(self.generated)


def match_pictures(trace: Trace, *, seed: int = 0) -> Matches:
    """Match the generated picture of a trace with its reference, where no true places are known.

    Key points of SIFT in both pictures (Lowe, International Journal of Computer Vision 60, 2004), inside the mask where
    there is one; of the nearest descriptors, each the other's, those that pass the ratio test; of these, those that
    follow one affine transform (RANSAC).

    Parameters
    ----------
    trace
        Holds the pictures `generated` and `reference`.
    seed
        Of RANSAC.

    Returns
    -------
    Matches
        At least `LEAST`.

    Raises
    ------
    InputError
        If a picture is missing, fewer points match, or scikit-image is not installed.
    """
    if find_spec("skimage") is None:
        raise InputError("matches need scikit-image: pip install 'attrace[quality]'")
    missing = [name for name in ("generated", trace.reference_name) if name not in trace.images]
    if missing:
        raise InputError(f"trace {trace.path}: matches need its pictures, it holds no {' and no '.join(missing)}")
    generated, reference = (trace.images[name].values for name in ("generated", trace.reference_name))
    (points, descriptors), (others, other_descriptors) = _key_points(generated), _key_points(reference)
    mask = trace_mask(trace)
    if mask is not None and mask.any():
        inside = coverage(mask, generated.shape[:2]) > 0
        kept = inside[tuple(np.clip(np.rint(points).astype(int), 0, np.array(inside.shape) - 1).T)]
        points, descriptors = points[kept], descriptors[kept]
    found = _alike(points, descriptors, others, other_descriptors, RESIDUAL * max(reference.shape[:2]), seed)
    if len(found[0]) < LEAST:
        raise InputError(
            f"trace {trace.path}: {len(found[0])} points of the generated picture match the reference by SIFT, "
            f"expected {LEAST} at least: the pictures are too small, too smooth or too different to tell what "
            "corresponds"
        )
    sizes = (np.array(picture.shape[:2]) for picture in (generated, reference))
    return Matches(*((at + 0.5) / size for at, size in zip(found, sizes, strict=True)))


def matches_on_grid(matches: Matches, query_grid: tuple[int, int], key_grid: tuple[int, int]) -> NDArray[np.float64]:
    """True place of each query patch that holds matches, their mean, in cells of the key grid; NaN of all others.

    Like that of `places_on_grid`: float64 (query_row, query_column, axis).
    """
    sums = np.zeros((*query_grid, 3))
    cells = np.minimum((matches.generated * query_grid).astype(int), np.array(query_grid) - 1)
    values = np.column_stack([matches.reference * key_grid - 0.5, np.ones(len(matches))])
    np.add.at(sums, tuple(cells.T), values)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: NDArray[np.float64] = sums[..., :2] / sums[..., 2:]
    return means


def _key_points(picture: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Row and column of the key points of a picture, and their descriptors; none where there is none."""
    from skimage.color import rgb2gray  # optional, and slow to import
    from skimage.feature import SIFT

    detector = SIFT()
    try:
        detector.detect_and_extract(rgb2gray(picture) if picture.ndim == 3 and picture.shape[2] == 3 else picture / 255)
    except RuntimeError:  # skimage's word for a picture without any
        return np.empty((0, 2)), np.empty((0, 128), np.uint8)
    return np.asarray(detector.positions), np.asarray(detector.descriptors)


def _alike(
    points: NDArray[Any],
    descriptors: NDArray[Any],
    others: NDArray[Any],
    other_descriptors: NDArray[Any],
    residual: float,
    seed: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Points of both pictures that match and follow one affine transform."""
    from skimage.feature import match_descriptors
    from skimage.measure import ransac
    from skimage.transform import AffineTransform

    if min(len(points), len(others)) < LEAST:
        return points[:0], others[:0]
    pairs = match_descriptors(descriptors, other_descriptors, max_ratio=RATIO, cross_check=True)
    if len(pairs) < LEAST:
        return points[:0], others[:0]
    own, their = points[pairs[:, 0]], others[pairs[:, 1]]
    _, kept = ransac(
        (own, their), AffineTransform, min_samples=3, residual_threshold=residual, max_trials=1000, rng=seed
    )
    kept = np.zeros(len(pairs), bool) if kept is None else kept
    return own[kept], their[kept]
