"""Finding the attention modules of a denoiser, and what can only be seen while it runs: query grids and timesteps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attrace.schemas import CaptureError, Context, InputError
from attrace.schemas.layers import find_layers

_TIMESTEP_NAMES = ("timestep", "timesteps", "t")
_PARALLEL = "to_qkv_mlp_proj"
_ADDED = ("add_k_proj", _PARALLEL)


@dataclass(frozen=True)
class Candidate:
    """An attention call that could be recorded."""

    path: str
    """Its label: the module path in the denoiser."""
    module: nn.Module
    """The attention module."""
    query_projection: nn.Module
    """Makes the queries."""
    key_projection: nn.Module
    """Makes the keys."""
    heads: int
    """Number of heads."""
    place: int = 0
    """Which attention call of the module's forward this is, counted from 0."""
    context: Context | None = None
    """What the keys are, where the structure alone tells it."""
    joint: bool = False
    """Its keys may be of several contexts, joined after their projections."""
    value_projection: nn.Module | None = None
    """Makes the values, where they are to be seen."""


def find_denoiser(model: Any, attribute: str | None = None) -> nn.Module:
    """The denoiser of a pipeline or of a module that holds it, or the module that was given.

    Raises
    ------
    InputError
        If there is none.
    """
    for name in (attribute,) if attribute else ("unet", "transformer"):
        denoiser = _attribute(model, name)
        if isinstance(denoiser, nn.Module):
            return denoiser
    if isinstance(model, nn.Module):
        return model
    raise InputError(
        f"expected a diffusers pipeline with a `{attribute or 'unet'}` or a torch module, found "
        f"{type(model).__name__}: pass the denoiser itself"
    )


def find_network(model: Any, attribute: str) -> nn.Module:
    """The network of that attribute, perhaps with dots in it.

    Raises
    ------
    InputError
        If there is none.
    """
    network = _attribute(model, attribute)
    if not isinstance(network, nn.Module):
        raise InputError(f"network={attribute!r}: {type(model).__name__} has no torch module of that name")
    return network


def _attribute(model: Any, path: str) -> Any:
    return reduce(lambda one, name: getattr(one, name, None), path.split("."), model)


def find_candidates(denoiser: nn.Module) -> tuple[Candidate, ...]:
    """Every attention call of the denoiser that can be recorded, in the order of its modules.

    A candidate is a module with `to_q` and `to_k` and a number of heads: so are the attention modules of diffusers,
    of the original latent diffusion code and of what was built on either. The single blocks of Flux 2 have one
    projection for everything (`to_qkv_mlp_proj`), so only their attention call tells queries from keys. An
    IP-Adapter adds one candidate for each of its key projections.

    Raises
    ------
    CaptureError
        If there is none.
    """
    modules = {path: module for path, module in denoiser.named_modules() if _is_attention(module)}
    if not modules:
        raise CaptureError(
            f"{type(denoiser).__name__} has no attention that can be recorded: no module of it has `to_q`, `to_k` and "
            "an integer `heads`"
        )
    # where some modules add projections for the text, others (Flux's single blocks) get both in one tensor
    joint = any(getattr(module, name, None) is not None for module in modules.values() for name in _ADDED)
    return tuple(one for path, module in modules.items() for one in _candidates(path, module, joint=joint))


def with_values(candidate: Candidate) -> Candidate:
    """The candidate with the projection that makes its values, where that is found by its name."""
    module = candidate.module if candidate.place == 0 else getattr(candidate.module, "processor", None)
    found = getattr(module, "to_v" if candidate.place == 0 else "to_v_ip", None)
    if isinstance(found, nn.ModuleList):
        found = found[candidate.place - 1] if candidate.place <= len(found) else None
    return replace(candidate, value_projection=found if isinstance(found, nn.Module) else None)


def refuse_hidden(denoiser: nn.Module, candidates: Iterable[Candidate]) -> None:
    """Refuse candidates that hooks cannot see: compiled, or with fused projections.

    Raises
    ------
    CaptureError
        If there is one.
    """
    compiled = [path for path, module in denoiser.named_modules() if _is_compiled(module)]
    for candidate in candidates:
        # hooks inside compiled code never fire, whether the code is the attention's own or what calls it
        hidden = [path for path in compiled if _within(candidate.path, path) or _within(path, candidate.path)]
        if hidden:
            raise CaptureError(
                f"{hidden[0] or type(denoiser).__name__} was compiled by torch.compile, which hides the attention of "
                f"{candidate.path}: record the model as it was before compiling"
            )
        if _is_fused(candidate.module):
            raise CaptureError(
                f"{candidate.path}: its query and key projections are fused, so they cannot be told apart: call "
                "unfuse_qkv_projections() before recording"
            )


def select_candidates(candidates: Sequence[Candidate], labels: Sequence[str] | None) -> tuple[Candidate, ...]:
    """Those that a module path, a glob or a short label names; all if there are no labels.

    Raises
    ------
    InputError
        If a label names none.
    SelectionError
        If a label is short for several.
    """
    if labels is None:
        return tuple(candidates)
    paths = [candidate.path for candidate in candidates]
    selected: set[str] = set()
    for label in labels:
        found = find_layers(label, paths)
        if not found:
            raise InputError(f"layers: no attention module matches {label!r}; the denoiser has {shorten(paths)}")
        selected.update(found)
    return tuple(one for one in candidates if one.path in selected)


def shorten(names: Sequence[str], most: int = 6) -> str:
    """Names for a message, the first few of many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _is_attention(module: nn.Module) -> bool:
    return _projections(module) is not None and isinstance(getattr(module, "heads", None), int)


def _projections(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """What makes a module's queries, and what its keys."""
    for query, key in (("to_q", "to_k"), (_PARALLEL, _PARALLEL)):
        found = getattr(module, query, None), getattr(module, key, None)
        if isinstance(found[0], nn.Module) and isinstance(found[1], nn.Module):
            return found[0], found[1]
    return None


def _candidates(path: str, module: nn.Module, *, joint: bool) -> Iterator[Candidate]:
    projections = _projections(module)
    assert projections is not None
    query, key = projections
    heads: int = module.heads  # type: ignore[assignment]
    yield Candidate(path, module, query, key, heads, joint=joint)
    adapters = getattr(getattr(module, "processor", None), "to_k_ip", None)
    label = f"{path}.processor.to_k_ip"
    added: list[tuple[str, nn.Module]] = []
    if isinstance(adapters, nn.ModuleList):
        added = [(f"{label}.{number}", one) for number, one in enumerate(adapters)]
    elif isinstance(adapters, nn.Module):  # the first IP-Adapter code has one projection
        added = [(label, adapters)]
    for place, (label, key) in enumerate(added, start=1):
        yield Candidate(label, module, query, key, heads, place=place, context="image-prompt", joint=joint)


def _is_fused(module: nn.Module) -> bool:
    processor = type(getattr(module, "processor", None)).__name__
    # `Attention` keeps the mark when it is unfused; its processor tells, as that of newer classes does not
    marked = bool(getattr(module, "fused_projections", False)) and type(module).__name__ != "Attention"
    return marked or processor.startswith("Fused")


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _within(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(folder + ".")


class QueryGrids:
    """Finds the grid of a site's queries from the pictures that its ancestors are called with.

    The queries of a site lie on the grid of the nearest ancestor that is given a picture (a 4-D tensor) of H x W with
    (H / f) (W / f) queries, f being 1, or 2 where the ancestor itself makes patches of 2 x 2.
    """

    def __init__(self, denoiser: nn.Module, candidates: Iterable[Candidate]) -> None:
        modules = dict(denoiser.named_modules())
        self._ancestors = {one.path: _ancestors(one, modules) for one in candidates}
        self._pictures: dict[nn.Module, list[tuple[int, int]]] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on the ancestors."""
        watched = {module: None for ancestors in self._ancestors.values() for module in ancestors}
        self._handles += [module.register_forward_pre_hook(self._look, with_kwargs=True) for module in watched]

    def of(self, path: str, queries: int) -> tuple[int, int] | None:
        """Rows and columns of the queries of a site that is being called; None where they lie on no grid."""
        return next((grid for grid in self.possible(path) if grid[0] * grid[1] == queries), None)

    def possible(self, path: str) -> Iterator[tuple[int, int]]:
        """Every grid that the queries of a site that is being called may lie on, the likeliest first."""
        for module in self._ancestors[path]:
            for rows, columns in self._pictures.get(module, []):
                for factor in (1, 2):
                    if rows % factor == columns % factor == 0:
                        yield rows // factor, columns // factor

    def detach(self) -> None:
        """Remove the hooks."""
        remove_all(self._handles)
        self._pictures.clear()

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = [one for name, one in kwargs.items() if "mask" not in name]
        given = [one for one in (*args, *named) if isinstance(one, Tensor) and one.ndim == 4 and not _is_mask(one)]
        self._pictures[module] = [(one.shape[2], one.shape[3]) for one in given]


def _is_mask(tensor: Tensor) -> bool:
    """Whether a 4-D tensor is an attention mask: boolean, or (row, 1, 1, key)."""
    return not tensor.is_floating_point() or tensor.shape[1] == tensor.shape[2] == 1


def _ancestors(candidate: Candidate, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, ...]:
    """The attention module and everything it lies in, nearest first."""
    parts = candidate.path.split(".")
    paths = [".".join(parts[:length]) for length in range(len(parts), -1, -1)]
    return tuple(modules[path] for path in paths if path in modules)


def argument_reader(denoiser: nn.Module) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Mapping[str, Any]]:
    """A function that names the arguments of a call of the denoiser; it finds none where they do not fit."""
    signature = inspect.signature(denoiser.forward)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return signature.bind_partial(*args, **kwargs).arguments
        except TypeError:
            return {}  # the call itself is about to fail, with a better message

    return read


def timestep_of(arguments: Mapping[str, Any]) -> Any:
    """The timestep among the arguments of a call; NaN where there is none."""
    return next((arguments[name] for name in _TIMESTEP_NAMES if arguments.get(name) is not None), float("nan"))


def remove_all(handles: list[RemovableHandle]) -> None:
    """Remove hooks and forget them."""
    while handles:
        handles.pop().remove()
