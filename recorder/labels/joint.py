"""Attention over several things at once: where text, generated picture and references lie among its tokens."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.scores import row_log_sum_exp
from attrace.recorder.labels.keys import Grid, KeyLabels
from attrace.recorder.labels.profile import Generates, TokenOrder
from attrace.schemas import CaptureError, Context, InputError, KeyKind, KeySegment

_PICTURES = ("img_ids", "img_shapes", "hidden_states")
"""Arguments of a denoiser that tell what pictures there are: the first of them that is given."""

_REDUX_TEXT = 512
"""Text tokens before the picture's of a Flux Redux prompt (diffusers, FluxPriorReduxPipeline)."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one thing."""

    context: Context
    """What they are as keys; `self` is the generated picture, whose tokens are the queries too."""
    count: int
    grid: Grid | None = None
    guess: str | None = None
    """Why this may be wrong; None where it is known."""

    @property
    def kind(self) -> KeyKind:
        """Kind of its keys."""
        return "text" if self.context == "text" else "patch"


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of an attention call, in their order."""

    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(one.count for one in self.segments)

    @property
    def picture_tokens(self) -> int:
        """Those that are not text: all that a layer over the pictures alone attends to."""
        return sum(one.count for one in self.segments if one.context != "text")

    @property
    def own_pictures(self) -> slice:
        """The generated picture among the tokens of pictures, of which it is the first."""
        return slice(0, next(one.count for one in self.segments if one.context == "self"))

    @property
    def query_grid(self) -> Grid | None:
        """Rows and columns of the generated picture."""
        return next(one.grid for one in self.segments if one.context == "self")

    @property
    def contexts(self) -> tuple[Context, ...]:
        """What there is, each once."""
        return tuple(dict.fromkeys(one.context for one in self.segments))

    def span(self, context: Context) -> slice:
        """The tokens of a context."""
        places = [place for place, one in enumerate(self.segments) if one.context == context]
        if places[-1] - places[0] + 1 != len(places):
            raise CaptureError(f"the tokens of the context {context!r} do not lie together")
        start = sum(one.count for one in self.segments[: places[0]])
        return slice(start, start + sum(self.segments[place].count for place in places))

    def labels(self, context: Context) -> KeyLabels:
        """The labels of the keys of a context."""
        parts = [one for one in self.segments if one.context == context]
        segments = tuple(KeySegment(kind=one.kind, count=one.count, grid=one.grid) for one in parts)
        return KeyLabels(context, segments, next((one.guess for one in parts if one.guess), None))

    def recorded(self, wanted: tuple[Context, ...] | None, *, self_attention: bool) -> tuple[Context, ...]:
        """The contexts to record: those that were asked for, or the references, or the text where there are none.

        Raises
        ------
        InputError
            If one that was asked for is not there.
        """
        usual: Context = "reference" if "reference" in self.contexts else "text"
        chosen = (usual,) if wanted is None else wanted
        for one in chosen:
            if one not in self.contexts:
                raise InputError(f"context={one!r}: the model's joint attention has {', '.join(self.contexts)}")
        own: tuple[Context, ...] = ("self",) if self_attention else ()
        return tuple(dict.fromkeys((*chosen, *own)))

    def split(self, projections: Projections, contexts: Iterable[Context]) -> Iterator[tuple[Context, Projections]]:
        """The generated picture's queries with the keys of each context, and the log-sum-exp over all keys."""
        queries = projections.of_queries(self.span("self"))
        lse = row_log_sum_exp(queries) if queries.kernel_lse is None else queries.kernel_lse
        for context in contexts:
            yield context, queries.of_keys(self.span(context), lse)


def refuse_unknown_layout(denoiser: nn.Module) -> None:
    """Refuse a denoiser with joint attention whose arguments do not tell where text and pictures lie.

    Raises
    ------
    CaptureError
        If it is such a one.
    """
    names = inspect.signature(denoiser.forward).parameters
    if "encoder_hidden_states" not in names or not any(name in names for name in _PICTURES):
        raise CaptureError(
            f"the attention of {type(denoiser).__name__} is joint, with added key projections, and its arguments do "
            f"not tell where text and pictures lie: expected encoder_hidden_states and one of {', '.join(_PICTURES)}"
        )


class LayoutReader:
    """Reads the layout of joint attention from the arguments of the denoiser's calls.

    Flux tells the place of each token in `img_ids`, Qwen-Image the shapes of its pictures in `img_shapes`; a model that
    is given a picture (SD3) makes patches of it. Places are read once for each number of tokens: on a device that takes
    waiting for it.

    Parameters
    ----------
    patch_size
        Side of the patches that the denoiser makes of its picture.
    order
        Order of text and pictures.
    generates
        Which of the pictures are generated.
    text_grid
        Rows and columns of a reference whose tokens end the text (Flux Redux), if the user gave them.
    """

    def __init__(
        self, patch_size: int, order: TokenOrder, text_grid: Grid | None = None, *, generates: Generates = "first"
    ) -> None:
        self._patch_size = patch_size
        self._order = order
        self._generates = generates
        self._text_grid = text_grid
        self._known: dict[object, tuple[Segment, ...]] = {}

    def read(self, arguments: Mapping[str, Any]) -> TokenLayout | None:
        """The layout of a call; None where its arguments do not tell."""
        text = arguments.get("encoder_hidden_states")
        if not isinstance(text, Tensor) or text.ndim != 3:
            return None
        pictures = self._pictures(arguments)
        if pictures is None:
            return None
        words = self._text(text.shape[1], has_reference=len(pictures) > 1)
        return TokenLayout((*words, *pictures) if self._order == "text-first" else (*pictures, *words))

    def _pictures(self, arguments: Mapping[str, Any]) -> tuple[Segment, ...] | None:
        places, shapes, hidden = (arguments.get(name) for name in _PICTURES)
        if isinstance(places, Tensor):
            places = places[0] if places.ndim == 3 else places
            # where references are given apart, what is left is the generated picture
            own = hidden.shape[1] if isinstance(hidden, Tensor) and hidden.ndim == 3 else len(places)
            if (places.shape, own) not in self._known:
                self._known[places.shape, own] = _pictures_by_place(places, own)
            return self._known[places.shape, own]
        if shapes:
            first = shapes[0] if isinstance(shapes[0], list) else shapes
            grids = [(frames * rows, columns) for frames, rows, columns in first]
            return _layers_by_grid(grids) if self._generates == "all-but-last" else _pictures_by_grid(grids)
        if isinstance(hidden, Tensor) and hidden.ndim == 4:
            return _pictures_by_grid([(hidden.shape[2] // self._patch_size, hidden.shape[3] // self._patch_size)])
        return None

    def _text(self, count: int, *, has_reference: bool) -> tuple[Segment, ...]:
        """The text, and a reference that may end it."""
        if has_reference:
            return (Segment("text", count),)
        grid, guess = self._text_grid, None
        if grid is None and self._order == "text-first" and count > _REDUX_TEXT:
            grid = _square(count - _REDUX_TEXT)
            guess = f"took the last text tokens for a reference of Flux Redux on the grid {grid} (pass key_grid=)"
        if grid is None:
            return (Segment("text", count),)
        if math.prod(grid) >= count:
            raise InputError(f"key_grid={grid} holds {math.prod(grid)} keys; the text has {count} tokens in all")
        patches = math.prod(grid)
        return Segment("text", count - patches), Segment("reference", patches, grid, guess)


def joined_layout(
    queries: int, keys: int, own: Grid | None, joined: Grid | None = None, *, guess: str | None = None
) -> TokenLayout | None:
    """The layout of self-attention that a reference network joined keys to; None where nothing is joined.

    The picture's own keys come first. Its queries may have been joined likewise (IDM-VTON, Leffa): they are left out.

    Parameters
    ----------
    queries, keys
        Tokens of the call.
    own
        Rows and columns of the picture itself, if they are known.
    joined
        Those of the reference, if the user gave them; by default one or more pictures like the picture itself.
    guess
        Why this may be wrong; None where the profile says it.
    """
    count = queries if own is None else math.prod(own)
    if count >= keys or queries not in (count, keys):
        return None
    own = own or _square(count)
    grid, rest = joined or own, keys - count
    if grid is None or rest % math.prod(grid):
        square = _square(rest)
        shape = "no grid" if square is None else f"{square[0]} x {square[1]} patches"
        parts = [Segment("reference", rest, square, f"took {rest} joined keys for {shape} (pass key_grid=)")]
    else:
        parts = [Segment("reference", math.prod(grid), grid, guess)] * (rest // math.prod(grid))
    return TokenLayout((Segment("self", count, own), *parts))


def _square(count: int) -> Grid | None:
    side = math.isqrt(count)
    return (side, side) if side**2 == count else None


def _pictures_by_grid(grids: list[Grid]) -> tuple[Segment, ...]:
    contexts: list[Context] = ["self", *["reference"] * (len(grids) - 1)]  # type: ignore[list-item]
    return tuple(Segment(context, math.prod(grid), grid) for context, grid in zip(contexts, grids, strict=True))


def _layers_by_grid(grids: list[Grid]) -> tuple[Segment, ...]:
    """Layers of one picture that are generated together, one below the other, and the picture they are made from."""
    *layers, (rows, columns) = grids
    if len(set(layers)) != 1:
        return tuple(Segment("self", math.prod(grid), None, "the generated layers differ in size") for grid in layers)
    own = (len(layers) * layers[0][0], layers[0][1])
    return Segment("self", math.prod(own), own), Segment("reference", rows * columns, (rows, columns))


def _pictures_by_place(places: Tensor, own: int) -> tuple[Segment, ...]:
    """Pictures from (token, 3 or more): number of the picture, row, column. The first ends after `own` tokens at most.

    Where the number does not change (EasyControl, DreamO), a gap in rows or columns or a repeat begins a new picture.
    """
    listed = [tuple(map(float, one[:3])) for one in places.tolist()]
    starts = [token for token in range(len(listed)) if token in (0, own) or listed[token][0] != listed[token - 1][0]]
    segments: list[Segment] = []
    for start, end in zip(starts, [*starts[1:], len(listed)], strict=True):
        for part in _pictures_of_one_number([one[1:] for one in listed[start:end]]):
            grid, guess = _grid_of_places(part)
            segments.append(Segment("reference" if segments else "self", len(part), grid, guess))
    return tuple(segments)


def _pictures_of_one_number(places: list[tuple[float, ...]]) -> list[list[tuple[float, ...]]]:
    """Rows and columns, apart where a token lies neither beside the one before it nor at the start of the next row."""
    starts = [0]
    step: list[float | None] = [None, None]
    """Between rows, and between columns, of the picture that the last start began."""
    for token in range(1, len(places)):
        (row, column), (last_row, last_column), first = places[token], places[token - 1], places[starts[-1]]
        axis, moved = (1, column - last_column) if row == last_row else (0, row - last_row)
        step[axis] = step[axis] or moved
        if moved <= 0 or moved != step[axis] or (axis == 0 and column != first[1]):
            starts.append(token)
            step = [None, None]
    parts = [places[start:end] for start, end in zip(starts, [*starts[1:], len(places)], strict=True)]
    # pictures have rows and columns; places in some other order have neither
    whole = all(len({one[axis] for one in part}) > 1 for part in parts for axis in (0, 1))
    return parts if whole else [places]


def _grid_of_places(places: list[tuple[float, ...]]) -> tuple[Grid | None, str | None]:
    rows, columns = (len({place[axis] for place in places}) for axis in (0, 1))
    if rows * columns == len(places) and places == sorted(places):
        return (rows, columns), None
    return None, f"could not tell on what grid {len(places)} tokens lie"
