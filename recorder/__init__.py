"""Writes a trace while a pipeline runs. The only place that knows torch and diffusers.

Everything public is imported from here when it is first asked for: torch takes seconds, and the room `writing` needs
none of it. `__init__.pyi` lists it with its homes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
