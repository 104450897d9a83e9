"""Which model, scheduler and software made a trace."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attrace.schemas import ModelIdentity

_PACKAGES = ("attrace", "torch", "diffusers", "transformers", "numpy", "zarr")


def identify(model: Any, *, model_id: str | None = None, revision: str | None = None) -> ModelIdentity:
    """The identity of a denoiser, pipeline or scheduler; its configuration if it has one, as diffusers' do.

    The hash leaves out members that begin with an underscore: they say where the model was loaded from and by which
    version, not what it is.
    """
    config = getattr(model, "config", None)
    plain = _plain_config(config) if isinstance(config, Mapping) else None
    return ModelIdentity(
        class_name=type(model).__name__,
        model_id=model_id or (_origin(config) if isinstance(config, Mapping) else None),
        revision=revision,
        config=plain,
        config_hash=None if plain is None else config_hash(plain),
    )


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration as JSON with sorted keys and no spaces, in hexadecimal."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # transformers is only there if the pipeline needs it
    return versions


def dtype_and_device(module: nn.Module) -> dict[str, str]:
    """Data type that a module computes in, and type of the device that it does so on, as members of a manifest.

    Weights that are quantised are kept in another type, and those that are offloaded on another device.
    """
    return {"model_dtype": str(_dtype(module)).removeprefix("torch."), "device": _device(module).type}


def _dtype(module: nn.Module) -> torch.dtype:
    found = getattr(module, "dtype", None)  # diffusers' models know what they cast their weights to
    if isinstance(found, torch.dtype):
        return found
    floating = (one.dtype for one in module.parameters() if one.is_floating_point())
    return next(floating, torch.get_default_dtype())


def _device(module: nn.Module) -> torch.device:
    for part in module.modules():
        of_accelerate = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if of_accelerate is not None:
            return torch.device(of_accelerate)
        registry = getattr(part, "_diffusers_hook", None)
        of_diffusers = None if registry is None else registry.get_hook("group_offloading")
        if of_diffusers is not None:
            return torch.device(of_diffusers.group.onload_device)
    return next(module.parameters(), torch.empty(0)).device


def _origin(config: Mapping[str, Any]) -> str | None:
    """Where diffusers loaded a model from; of a local folder only its name, since a trace may be sent to others."""
    origin = str(config.get("_name_or_path") or "")
    return (Path(origin).name if Path(origin).exists() else origin) or None


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The public members, as JSON has them; what is not JSON as text."""
    public = {name: value for name, value in config.items() if not name.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(public, default=_as_json))
    return plain


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
