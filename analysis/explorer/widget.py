"""The explorer in a notebook: an anywidget that computes exact values when they are asked for."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from attrace.analysis.explorer.exact import ExactAnswers
from attrace.analysis.explorer.page import resource
from attrace.schemas import AttraceError

if TYPE_CHECKING:
    from attrace.analysis.maps.weights import LayerWeights
    from attrace.analysis.trace.trace import Trace


def explore(trace: Trace, *, groups: int | None = None, weights: LayerWeights = None) -> Any:
    """Show the explorer of a trace in a notebook: Jupyter, VS Code, Colab or marimo.

    Every value is exact and computed when it is asked for, so that a trace may be of any size.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    groups
        Groups of steps of the time strip; 10 by default (fewer where there are fewer steps).
    weights
        Of layers and heads in every mean over them, as for `attribution_map`.

    Returns
    -------
    anywidget.AnyWidget
        `facts` says what there is to see; `state` is what is chosen, and may be set.

    Raises
    ------
    ImportError
        If anywidget is not installed.
    InputError
        If the trace has no finished step, no grid of queries or no scores.
    """
    try:
        import anywidget
        import traitlets
    except ModuleNotFoundError as error:
        raise ImportError("explore needs anywidget: pip install 'attrace[notebook]'") from error

    class Explorer(anywidget.AnyWidget):  # type: ignore[misc,unused-ignore]
        """The explorer of one trace."""

        _esm = resource("explorer.js")
        _css = resource("explorer.css")
        facts = traitlets.Dict().tag(sync=True)
        state = traitlets.Dict().tag(sync=True)

    answers = ExactAnswers(trace, groups=groups, weights=weights)

    def answer(widget: Any, question: dict[str, Any], _: list[bytes]) -> None:
        try:
            head, arrays = answers.answer(question)
            widget.send(head, [array.astype("<f4").tobytes() for array in arrays])
        except AttraceError as error:
            widget.send({"id": question.get("id"), "failed": str(error)})

    widget = Explorer(facts=answers.facts)
    widget.on_msg(answer)
    return widget


def notebook_bundle(trace: Trace) -> Any:
    """The explorer as a notebook shows it; None where there is no notebook, no anywidget, or nothing to explore."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None or find_spec("anywidget") is None:
        return None
    try:
        return explore(trace)._repr_mimebundle_()
    except AttraceError:
        return None
