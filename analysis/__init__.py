"""Reads traces: lazy maps, scores, statistics and figures. No torch, no model."""

from attrace.analysis.archive import unpack
from attrace.analysis.correspondence import correspondence
from attrace.analysis.maps import hlam, llam, tlam, ulam
from attrace.analysis.marginals import marginals
from attrace.analysis.measures import Box, bounding_box, imacs, iou
from attrace.analysis.pack import pack
from attrace.analysis.precompute import precompute
from attrace.analysis.sram import sram
from attrace.analysis.tokens import token_map
from attrace.analysis.trace import Trace, open_trace
from attrace.analysis.traces import Traces, open_traces

__all__ = [
    "Box",
    "Trace",
    "Traces",
    "bounding_box",
    "correspondence",
    "hlam",
    "imacs",
    "iou",
    "llam",
    "marginals",
    "open_trace",
    "open_traces",
    "pack",
    "precompute",
    "sram",
    "tlam",
    "token_map",
    "ulam",
    "unpack",
]
