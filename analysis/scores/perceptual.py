"""Distances of pictures in the feature spaces of other networks: LPIPS of two pictures, FID and KID of two sets.

The networks and the formulas are those of torchmetrics, torchvision and torch-fidelity. Their weights are never
downloaded here: they are expected where torch keeps such files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike

from attrace.analysis.trace.trace import open_trace
from attrace.schemas import InputError

if TYPE_CHECKING:
    from torch import Tensor

ALEXNET: Final = "alexnet-owt-7be5be79.pth"
"""AlexNet of torchvision, which LPIPS compares the features of."""

INCEPTION: Final = "weights-inception-2015-12-05-6726825d.pth"
"""Inception v3 of torch-fidelity: the network of the published FID and KID."""

SOURCES: Final[Mapping[str, str]] = {
    ALEXNET: "https://download.pytorch.org/models/",
    INCEPTION: "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/",
}
"""Where their makers publish these files."""

LARGEST_SUBSET: Final = 1000
"""Pictures of a subset of KID, at most, as published."""


@dataclass(frozen=True)
class SetDistance:
    """How far a set of pictures is from the true ones, as sets."""

    pictures: int
    """In each set."""
    fid: float
    """Frechet Inception distance."""
    kid: float
    """Kernel Inception distance, the mean over subsets."""
    kid_deviation: float
    """Its standard deviation over the subsets; 0 where a subset is the whole set."""


def lpips(picture: ArrayLike, truth: ArrayLike) -> float:
    """Learned perceptual image patch similarity of an 8-bit picture and the true one: 0 where they are equal.

    Parameters
    ----------
    picture, truth
        uint8 (row, column) or (row, column, channel), of one shape, with 1 or 3 channels.

    Raises
    ------
    InputError
        If torchmetrics, torchvision or the weights are missing, or the pictures are not such.

    Notes
    -----
    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924: version
    0.1 with AlexNet.
    """
    network = _lpips_network()
    pair = [_tensor(one) for one in (picture, truth)]
    if pair[0].shape != pair[1].shape:
        raise InputError(f"LPIPS needs two pictures of one shape, found {np.shape(picture)} and {np.shape(truth)}")
    return float(network(*(one.float() / 255 for one in pair)))


class PictureSets:
    """Gathers the features of generated and of true pictures, which may be of any sizes.

    Parameters
    ----------
    network
        Gives the features of pictures in place of Inception: uint8 (picture, channel, row, column) to float (picture,
        feature).

    Raises
    ------
    InputError
        If a library or the weights are missing.
    """

    def __init__(self, network: Callable[[Tensor], Tensor] | None = None) -> None:
        _require("FID and KID", "torch", "torchmetrics")
        self._network = _inception() if network is None else network
        self._generated: list[Tensor] = []
        self._true: list[Tensor] = []

    def add(self, generated: ArrayLike, truth: ArrayLike) -> None:
        """Take in a generated picture and a true one: uint8, as for `lpips`."""
        import torch

        with torch.no_grad():
            self._generated.append(self._network(_tensor(generated)))
            self._true.append(self._network(_tensor(truth)))

    def distance(self) -> SetDistance:
        """FID and KID of what was taken in; the subsets of KID are drawn alike every time.

        Raises
        ------
        InputError
            If there are fewer than two pictures.
        """
        import torch
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        pictures = len(self._true)
        if pictures < 2:
            raise InputError(f"FID and KID compare sets: expected two pictures or more, found {pictures}")
        as_they_are: Any = torch.nn.Identity()
        as_they_are.num_features = self._true[0].shape[1]
        fid = FrechetInceptionDistance(feature=as_they_are)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")  # they are kept here
            kid = KernelInceptionDistance(feature=as_they_are, subset_size=min(LARGEST_SUBSET, pictures))
        for metric in (fid, kid):
            metric.update(torch.cat(self._generated), real=False)
            metric.update(torch.cat(self._true), real=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            mean, deviation = kid.compute()
        return SetDistance(pictures, float(fid.compute()), float(mean), float(deviation))


def set_distance(paths: Iterable[str], *, storage_options: Mapping[str, Any] | None = None) -> SetDistance:
    """FID and KID of the generated pictures of traces against their true ones.

    Raises
    ------
    InputError
        If a library or the weights are missing, a trace lacks one of the pictures, or there are fewer than two traces.
    """
    sets = PictureSets()
    for path in paths:
        images = open_trace(path, storage_options=storage_options).images
        if not {"generated", "truth"} <= images.keys():
            raise InputError(f"trace {path}: FID and KID need its pictures `generated` and `truth`")
        sets.add(images["generated"].values, images["truth"].values)
    return sets.distance()


def require_lpips() -> None:
    """Refuse at once what `lpips` would refuse.

    Raises
    ------
    InputError
        If a library or the weights are missing.
    """
    _lpips_network()


@cache
def _lpips_network() -> Any:
    _require("LPIPS", "torch", "torchmetrics", "torchvision")
    _require_weights("LPIPS", ALEXNET)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)


@cache
def _inception() -> Any:
    _require("FID and KID", "torch_fidelity")
    weights = _require_weights("FID and KID", INCEPTION)
    from torchmetrics.image.fid import NoTrainInceptionV3

    # resized as TensorFlow did, without antialias: so are the published numbers
    return NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights), antialias=False)


def _require(what: str, *modules: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InputError(
            f'{", ".join(missing)} must be installed for {what}: pip install "attrace[perceptual]", with a torch that '
            "suits torchvision"
        )


def _require_weights(what: str, name: str) -> Path:
    """The file of weights; refuses its absence, as torch would download it."""
    import torch

    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        raise InputError(
            f"the weights for {what} are not here: expected {path}, from {SOURCES[name]}{name}; nothing is downloaded "
            "by itself, and TORCH_HOME names another folder"
        )
    return path


def _tensor(picture: ArrayLike) -> Tensor:
    """A picture as torch takes it: uint8 (1, 3, row, column)."""
    import torch

    pixels = np.asarray(picture)
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise InputError(
            "expected a uint8 picture (row, column) or (row, column, channel) of 1 or 3 channels, found "
            f"{pixels.dtype} {np.shape(picture)}"
        )
    coloured = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(coloured))[None]
