"""Reads traces: lazy maps, scores, statistics and figures. No torch, no model."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attrace.analysis.archive import unpack
    from attrace.analysis.content import content_id
    from attrace.analysis.correspondence import correspondence
    from attrace.analysis.diff import Difference, diff
    from attrace.analysis.maps import hlam, llam, tlam, ulam
    from attrace.analysis.marginals import marginals
    from attrace.analysis.measures import Box, bounding_box, imacs, iou
    from attrace.analysis.pack import pack
    from attrace.analysis.precompute import precompute
    from attrace.analysis.published import as_published
    from attrace.analysis.repair import repair
    from attrace.analysis.report.write import write_report
    from attrace.analysis.resampler import resampler_shares
    from attrace.analysis.sram import sram
    from attrace.analysis.statistics import (
        agreement,
        correspondence_error,
        drift,
        effective_tokens,
        entropy,
        mass,
        psnr,
        ssim,
    )
    from attrace.analysis.tokens import token_map
    from attrace.analysis.trace import Trace, open_trace
    from attrace.analysis.traces import Traces, open_traces

_HOMES = {
    "archive": ("unpack",),
    "content": ("content_id",),
    "correspondence": ("correspondence",),
    "diff": (
        "Difference",
        "diff",
    ),
    "maps": (
        "hlam",
        "llam",
        "tlam",
        "ulam",
    ),
    "marginals": ("marginals",),
    "measures": (
        "Box",
        "bounding_box",
        "imacs",
        "iou",
    ),
    "pack": ("pack",),
    "precompute": ("precompute",),
    "published": ("as_published",),
    "repair": ("repair",),
    "report.write": ("write_report",),
    "resampler": ("resampler_shares",),
    "sram": ("sram",),
    "statistics": (
        "agreement",
        "correspondence_error",
        "drift",
        "effective_tokens",
        "entropy",
        "mass",
        "psnr",
        "ssim",
    ),
    "tokens": ("token_map",),
    "trace": (
        "Trace",
        "open_trace",
    ),
    "traces": (
        "Traces",
        "open_traces",
    ),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


class _Face(ModuleType):
    """Imports what is public when it is first asked for: xarray, Dask and numba take a second that not all need."""

    def __getattr__(self, name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{self.__name__}.{_MODULE_OF[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # importing a module makes it an attribute of its package; a function of the same name is what is public
        if not (isinstance(value, ModuleType) and name in _MODULE_OF):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_MODULE_OF})


sys.modules[__name__].__class__ = _Face

__all__ = [
    "Box",
    "Difference",
    "Trace",
    "Traces",
    "agreement",
    "as_published",
    "bounding_box",
    "content_id",
    "correspondence",
    "correspondence_error",
    "diff",
    "drift",
    "effective_tokens",
    "entropy",
    "hlam",
    "imacs",
    "iou",
    "llam",
    "marginals",
    "mass",
    "open_trace",
    "open_traces",
    "pack",
    "precompute",
    "psnr",
    "repair",
    "resampler_shares",
    "sram",
    "ssim",
    "tlam",
    "token_map",
    "ulam",
    "unpack",
    "write_report",
]
