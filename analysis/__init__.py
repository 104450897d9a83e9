"""Reads traces: lazy maps, scores, statistics and figures. No torch, no model.

Everything public is imported from here when it is first asked for: xarray, Dask and numba take a second that not all
need. `__init__.pyi` lists it with its homes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
