"""Writes a trace while a pipeline runs. The only place that knows torch and diffusers.

Everything public is imported from here when it is first asked for: torch takes seconds, and the room `writing` needs
none of it. `__init__.pyi` lists it with its homes.
"""

from typing import Any, Final

import lazy_loader

_REQUIRED: Final = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
"""What `attrace[record]` installs."""

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if error.name not in _REQUIRED:
            raise
        message = f"attrace.{name} needs {error.name}: pip install 'attrace[record]'"
        raise ModuleNotFoundError(message, name=error.name) from None
