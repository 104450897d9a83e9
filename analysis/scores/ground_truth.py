"""True places in the reference of the pixels of a generated picture, laid on the grids of the layers."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.maps.masks import area_matrix, coverage
from attrace.analysis.maps.sram import picture_size
from attrace.analysis.scores.boxes import Box, mask_box
from attrace.analysis.scores.correspondence import correspondence, correspondence_error, pck
from attrace.analysis.scores.matches import Matches, matches_on_grid
from attrace.analysis.trace.key_segments import picture_keys
from attrace.analysis.trace.trace import Trace
from attrace.schemas import InputError


def places_of_box(
    box: Box | tuple[int, int, int, int], picture: tuple[int, int], mask: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Places in a reference that is laid, whole and unturned, on a box of the generated picture.

    Parameters
    ----------
    box
        Top, left, bottom, right in pixels of the generated picture; the last two are not in it.
    picture
        Rows and columns of the generated picture.
    mask
        (row, column), bool, of any resolution: pixels where the reference shows; None for the whole box.

    Returns
    -------
    ndarray
        float64 (row, column, axis): row and column in the reference, as shares of its height and width; NaN where the
        reference does not show.

    Raises
    ------
    InputError
        If the box is empty or does not lie in the picture.
    """
    top, left, bottom, right = box
    if not (0 <= top < bottom <= picture[0] and 0 <= left < right <= picture[1]):
        raise InputError(
            f"box {top},{left},{bottom},{right}: expected top,left,bottom,right within the picture of {picture[0]} x "
            f"{picture[1]} pixels"
        )
    row, column = np.mgrid[: picture[0], : picture[1]] + 0.5
    places: NDArray[np.float64] = np.stack([(row - top) / (bottom - top), (column - left) / (right - left)], axis=-1)
    shown = ((places > 0) & (places < 1)).all(axis=-1)
    if mask is not None:
        shown &= coverage(mask, picture) > 0.5
    places[~shown] = np.nan
    return places


def places_of_mask(trace: Trace, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Places in a reference that was laid, whole and unturned, on the box around a mask: (row, column, axis).

    Raises
    ------
    InputError
        If the mask selects nothing.
    """
    picture = picture_size(trace)
    # a box in pixels of the picture, where the mask has another resolution
    scale = np.array(picture * 2) / (mask.shape * 2)
    top, left, bottom, right = np.rint(np.array(mask_box(mask)) * scale).astype(int).tolist()
    return places_of_box((top, left, bottom, right), picture, mask)


def places_on_grid(places: ArrayLike, query_grid: tuple[int, int], key_grid: tuple[int, int]) -> NDArray[np.float64]:
    """True place of each query patch, in cells of the key grid, as `correspondence_error` takes it.

    Parameters
    ----------
    places
        (row, column, axis) over the generated picture, in shares of the reference's height and width; NaN where none.
    query_grid, key_grid
        Rows and columns.

    Returns
    -------
    ndarray
        float64 (query_row, query_column, axis): the mean over the pixels of the patch, 0 being the centre of the first
        key; NaN where a pixel of the patch has no place.

    Raises
    ------
    InputError
        If the places have another shape.
    """
    values = np.asarray(places, np.float64)
    if values.ndim != 3 or values.shape[2] != 2 or 0 in values.shape:
        raise InputError(f"places: expected the shape (row, column, 2) over the picture, found {values.shape}")
    down, across = (area_matrix(length, cells) for length, cells in zip(values.shape[:2], query_grid, strict=True))
    known = np.asarray(np.isfinite(values).all(axis=-1))
    filled: NDArray[np.float64] = np.where(known[..., np.newaxis], values, 0.0)
    means = np.stack([down @ filled[..., axis] @ across.T for axis in range(2)], axis=-1)
    whole = down @ known @ across.T > 1 - 1e-9
    on_grid: NDArray[np.float64] = np.where(whole[..., np.newaxis], means * key_grid - 0.5, np.nan)
    return on_grid


def correspondence_scores(trace: Trace, places: ArrayLike | Matches, *, heads: bool = False) -> xr.Dataset:
    """How far every layer whose queries and keys lie on grids looks from the true places.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    places
        True places as for `places_on_grid`, or matched points of both pictures.
    heads
        Of each head by itself.

    Returns
    -------
    xarray.Dataset
        `correspondence_error`, in cells of the layer's key grid, and `pck` (layer[, head]) in the order of calls; NaN
        for a layer none of whose patches has a true place, and for a head that it does not have.

    Raises
    ------
    InputError
        If no layer has such grids, or the places have another shape.
    """
    scores = []
    for one in trace.classes:
        picture, grid = picture_keys(one.site_class), one.site_class.query_grid
        if picture is None or grid is None:
            continue
        found = correspondence(trace, layers=one.paths, heads=heads).compute()
        on_grid = matches_on_grid if isinstance(places, Matches) else places_on_grid
        truth = on_grid(places, grid, picture[1])  # type: ignore[arg-type]
        if np.isfinite(truth).any():
            of_class = {"correspondence_error": correspondence_error(found, truth), "pck": pck(found, truth)}
        else:
            unknown = found.isel(query_row=0, query_column=0, axis=0, drop=True) * np.nan
            of_class = {"correspondence_error": unknown, "pck": unknown}
        scores.append(xr.Dataset(of_class).reset_coords(drop=True))
    if not scores:
        raise InputError(f"trace {trace.path}: no selected layer has both queries and keys on a grid")
    joined: xr.Dataset = xr.concat(scores, "layer", join="outer", coords="minimal", compat="override")
    layers = [layer for layer in trace.layers if layer in joined["layer"]]
    return (
        joined.sel(layer=layers).compute().assign_attrs({"matches": len(places)} if isinstance(places, Matches) else {})
    )
