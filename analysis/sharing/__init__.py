"""Traces that travel: `pack` and `unpack`, `push` and `pull`, and the engine with which xarray opens them.

In: a trace or a part of it. Out: one zip file, a folder or an address that every reader opens as it is.
"""
