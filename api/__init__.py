"""Record the attention of a diffusion model once; analyse it for ever, without a GPU.

`attrace.record`, `attrace.open_trace`, `attrace.ulam` and so on: the public names of `attrace.recorder` and
`attrace.analysis`, and the errors that they raise. Each is imported when it is first used. `__init__.pyi` lists them.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
