"""Figures of a trace: maps over their pictures, strips over time, grids over heads and layers, chosen patches."""

from attrace.analysis.figures.blend import Paint
from attrace.analysis.figures.maps import draw_map, draw_sram
from attrace.analysis.figures.save import draw_chosen, draw_over, save_figure, save_figures

__all__ = ["Paint", "draw_chosen", "draw_map", "draw_over", "draw_sram", "save_figure", "save_figures"]
