"""Summary of a trace in a few lines of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from attrace.schemas import Manifest, ModelIdentity, Omitted, SiteClass, class_arrays
from attrace.schemas.folders import asides_text

if TYPE_CHECKING:
    from attrace.analysis.trace.selected import SelectedClass
    from attrace.analysis.trace.trace import Trace


def describe(trace: Trace) -> str:
    """Model, date, selection and size of a trace, as text."""
    manifest = trace.manifest
    lines = [
        f"<attrace.Trace {trace.path}>",
        f"  model     {_model(manifest)}",
        f"  recorded  {manifest.created}, {_steps(trace)}, {trace.status}",
        f"  context   {_choice(trace.context, trace.contexts)}; branch {_choice(trace.branch, trace.branches)}",
        *(f"  {'layers' if not i else '':8}  {_class_line(one)}" for i, one in enumerate(trace.classes)),
        f"  size      at most {_human(stored_bytes(trace))} before compression",
    ]
    return "\n".join(lines)


def facts(trace: Trace, *, size: str = "") -> dict[str, str]:
    """Provenance of a trace, by name; unknown entries are left out. `size` comes from the caller."""
    manifest = trace.manifest
    guidance = manifest.guidance
    images = [f"{name} {'x'.join(map(str, shape[:2]))}" for name, shape in trace.image_shapes.items()]
    known = {
        "trace": trace.path,
        "id": manifest.id,
        "status": f"{_status(trace)}, {trace.steps} finished steps"
        + (asides_text(trace.path) if trace.status == "recording" else ""),
        "recorded": f"{manifest.created} to {manifest.finished or '(not closed)'}",
        "size": size,
        "pipeline": _identity(manifest.pipeline),
        "denoiser": _identity(manifest.denoiser),
        "scheduler": _identity(manifest.scheduler),
        "guidance": f"{', '.join(guidance.kept)} of {', '.join(guidance.branches)}"
        + (f", scale {guidance.scale:g}" if guidance.scale is not None else ""),
        "seed": "" if manifest.seed is None else str(manifest.seed),
        "computed": f"{manifest.model_dtype} on {manifest.device}",
        "sample": f"{manifest.sample} of {manifest.samples}" if manifest.samples > 1 else "",
        "images": ", ".join(images) or "none",
        "left out": _left_out(manifest.omitted),
        "licence": manifest.licence or "",
        "citation": " ".join((manifest.citation or "").split()),
    }
    return {name: value for name, value in known.items() if value}


def stored_bytes(trace: Trace) -> int:
    """Bytes of the selected steps of all classes before compression, keys counted in every step."""
    return sum(
        math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
        for site_class in trace.manifest.classes
        for spec in class_arrays(site_class, trace.steps, major=trace.manifest.major)
    )


def describe_keys(site_class: SiteClass) -> str:
    """Description of the keys of a class, such as `257 keys (1 cls + 16x16 patch)`."""
    parts = [
        f"{segment.grid[0]}x{segment.grid[1]} {segment.kind}" if segment.grid else f"{segment.count} {segment.kind}"
        for segment in site_class.key_segments
    ]
    return f"{site_class.keys} keys ({' + '.join(parts)})"


def stored_as(site_class: SiteClass) -> str:
    """Encoding and data type of a class, such as `factors float16 and values`."""
    return f"{site_class.encoding} {site_class.dtype}{'' if site_class.channels is None else ' and values'}"


def _class_line(selected: SelectedClass) -> str:
    one = selected.site_class
    queries = f"{one.query_grid[0]}x{one.query_grid[1]}" if one.query_grid else f"{one.queries}"
    return (
        f"{len(selected.layers)} in {one.group}: {len(selected.heads)} heads, {queries} queries, "
        f"{describe_keys(one)}, {stored_as(one)}"
    )


def _model(manifest: Manifest) -> str:
    named = manifest.pipeline or manifest.denoiser
    return named.class_name + (f" ({named.model_id})" if named.model_id else "")


def _status(trace: Trace) -> str:
    """The status; of a recording that was never closed nobody knows more."""
    return "interrupted, or still recording" if trace.status == "recording" else trace.status


def _steps(trace: Trace) -> str:
    return f"{trace.steps} step" + ("" if trace.steps == 1 else "s")


def _choice(chosen: str | None, known: tuple[str, ...]) -> str:
    others = [one for one in known if one != chosen]
    return f"{chosen}" + (f" (also {', '.join(others)})" if others else "")


def _left_out(omitted: Omitted | None) -> str:
    if omitted is None:
        return ""
    counts = {"layers": omitted.layers, "steps": omitted.steps}
    parts = [*omitted.parts, *(f"{count} {what}" for what, count in counts.items() if count)]
    return f"{', '.join(parts)}, of trace {omitted.source}"


def _identity(model: ModelIdentity | None) -> str:
    if model is None:
        return ""
    where = " ".join(part for part in (model.model_id, model.revision and f"at {model.revision}") if part)
    return f"{model.class_name} ({where})" if where else model.class_name


def _human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
