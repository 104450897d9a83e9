"""What the keys of an attention call are: one context as a rule, several where a model attends to them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.sites import Candidate, QueryGrids
from attrace.recorder.labels.joint import LayoutReader, TokenLayout, joined_layout
from attrace.recorder.labels.keys import Grid, KeyLabels, label_keys
from attrace.recorder.labels.profile import Profile
from attrace.schemas import CaptureError, Context


@dataclass(frozen=True)
class KeysOfContext:
    """An attention call as far as its keys are of one context."""

    projections: Projections
    context: Context
    query_grid: Grid | None
    labels: Callable[[], KeyLabels]
    """Makes the labels of the keys, which only the first step needs."""


@dataclass(frozen=True)
class Omission:
    """What of an attention call is not recorded."""

    reason: str
    """Why."""
    is_whole: bool
    """Nothing of the call is recorded."""


_OWN = "self-attention of the picture (self_attention=True records it)"


class ContextSplitter:
    """Takes attention calls apart by what their keys are.

    Parameters
    ----------
    denoiser
        Whose attention it is.
    grids
        Finds the grids of queries, as long as the first step lasts.
    profile
        What is known of the model.
    wanted
        What to record of attention to several contexts at once; None for the references, else the text.
    self_attention
        Whether to record attention of the generated picture to itself.
    key_grid
        Rows and columns of the keys, if the user gave them.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        grids: QueryGrids,
        *,
        profile: Profile,
        wanted: tuple[Context, ...] | None,
        self_attention: bool,
        key_grid: Grid | None,
    ) -> None:
        self._denoiser, self._grids, self._profile = denoiser, grids, profile
        self._wanted, self._self_attention, self._key_grid = wanted, self_attention, key_grid
        self._reader = LayoutReader(
            _patch_size(denoiser),
            profile.joint or "text-first",
            key_grid,
            generates="all-but-last" if _makes_layers(denoiser) else profile.generates,
        )
        self._tokens: TokenLayout | None = None
        self._joined: dict[tuple[str, int, int], TokenLayout | None] = {}
        self._contexts: dict[str, Context] = {}
        self._text: int | None = None
        """Tokens of the text that the denoiser was given."""
        self._pictures: set[int] = set()
        """Tokens that it may have made of the pictures it was given."""
        self._listed: tuple[set[int], set[int]] | None = None
        """The same of texts and of pictures that it was given as lists; None if it was not."""
        self.joined: set[str] = set()
        """Sites, by path, whose self-attention something is joined to, though the profile does not say so."""
        self.guesses: dict[str, None] = {}
        """Why the layout of joint attention may be wrong, also where that of a segment that is not recorded."""

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """Read from the arguments of a call of the denoiser where text and pictures lie, if its attention is joint."""
        self._tokens = self._reader.read(arguments) if self._profile.joint is not None else None
        if self._tokens is not None:
            self.guesses |= {one.guess: None for one in self._tokens.segments if one.guess is not None}
        text = arguments.get("encoder_hidden_states")
        text = text[0] if isinstance(text, tuple) and text else text
        self._text = text.shape[1] if isinstance(text, Tensor) and text.ndim == 3 else None
        self._pictures = set(_numbers_of_tokens(arguments.get("hidden_states")))
        self._listed = _listed_tokens(arguments)

    def contexts_of(self, candidate: Candidate, projections: Projections) -> tuple[Context, ...]:
        """What the keys of a call are: one context, or several that are attended to at once."""
        layout = self.layout(candidate, projections)
        return (self._whole(candidate, projections).context,) if layout is None else layout.contexts

    def omission(self, candidate: Candidate, projections: Projections) -> Omission | None:
        """What of a call is not to be recorded; None if all of it is."""
        if self._is_own(candidate, projections):
            self._refuse_text_among_own(candidate, projections)
            return None if self._self_attention else Omission(_OWN, is_whole=True)
        layout = self.layout(candidate, projections)
        found = self.contexts_of(candidate, projections)
        if layout is None and (self._wanted is None or self._profile.joint is not None or candidate.place > 0):
            return None
        if layout is None or (self._wanted is not None and self._profile.joint is None):
            recorded = tuple(one for one in found if one in (self._wanted or ()))
        else:
            recorded = layout.recorded(self._wanted, self_attention=self._self_attention)
        if layout is not None and recorded and self._self_attention:
            recorded = (*recorded, "self")
        rest = [one for one in found if one not in recorded]
        reason = f"keys of {' and '.join(rest)}, which context= did not ask for"
        return Omission(reason, is_whole=not recorded) if rest else None

    def split(self, candidate: Candidate, projections: Projections) -> Iterator[KeysOfContext]:
        """What to record of a call."""
        layout = self.layout(candidate, projections)
        if layout is None:
            yield self._whole(candidate, projections)
            return
        wanted = self._wanted
        if wanted is not None and self._profile.joint is None:  # other layers may have the other contexts
            wanted = tuple(one for one in wanted if one in layout.contexts)
        contexts = layout.recorded(wanted, self_attention=self._self_attention)
        for context, part in layout.split(projections, contexts):
            yield KeysOfContext(part, context, layout.query_grid, partial(layout.labels, context))

    def _refuse_text_among_own(self, candidate: Candidate, projections: Projections) -> None:
        """Refuse self-attention whose tokens are text and picture, of which no added projection tells."""
        tokens = projections.query.shape[2]
        if self._listed is not None:
            texts, listed = self._listed
            if tokens in texts or tokens not in listed:
                raise CaptureError(
                    f"{candidate.path} attends to {tokens} tokens of texts and pictures that the denoiser was given as "
                    "lists: which of them are text is not known. Leave it out with layers=, which may name the layers "
                    "over the picture alone"
                )
        if self._text is None or self._profile.joint is not None:
            return
        pictures = self._pictures | {math.prod(grid) for grid in self._grids.possible(candidate.path)}
        if tokens not in pictures and tokens - self._text in pictures:
            raise CaptureError(
                f"{candidate.path} attends to text and picture in one: {tokens} tokens, {self._text} of them of the "
                "text. Which come first is not known: pass profile= with joint='text-first' or 'image-first', and "
                "layers= for the layers that hold both"
            )

    def _is_own(self, candidate: Candidate, projections: Projections) -> bool:
        """Whether a call attends to the generated picture alone."""
        replaced = self._rule(candidate) == "replaced"
        return projections.is_self and not replaced and self.layout(candidate, projections) is None

    def _whole(self, candidate: Candidate, projections: Projections) -> KeysOfContext:
        """A call whose keys are all of one context."""
        queries, keys = projections.query.shape[2], projections.key.shape[2]
        query_grid = self._grids.of(candidate.path, queries)
        if self._tokens is not None and self._tokens.picture_tokens == queries:
            query_grid = self._tokens.query_grid
            if candidate.place > 0:  # an IP-Adapter's call has the queries of every picture
                projections = projections.of_queries(self._tokens.own_pictures)
        labels = partial(
            label_keys,
            candidate.path,
            keys,
            profile=self._profile,
            context="self" if self._is_own(candidate, projections) else candidate.context,
            queries=queries,
            query_grid=query_grid,
            key_grid=self._key_grid,
        )
        if candidate.path not in self._contexts:
            context = self._contexts[candidate.path] = labels().context
            cells = math.prod(next(self._grids.possible(candidate.path), (0,)))
            if context == "text" and self._text not in (None, keys) and cells > 1 and keys in (cells, 2 * cells):
                raise CaptureError(
                    f"{candidate.path} attends to {keys} keys, the text has {self._text} tokens and the picture "
                    f"{cells} patches: its keys are of another picture. Pass profile= with keys='joined' or "
                    "'replaced' for it, or leave it out with layers="
                )
        return KeysOfContext(projections, self._contexts[candidate.path], query_grid, labels)

    def layout(self, candidate: Candidate, projections: Projections) -> TokenLayout | None:
        """Token layout of a call; None if its keys are all of one context."""
        queries, keys = projections.query.shape[2], projections.key.shape[2]
        if self._rule(candidate) == "joined":
            shape = (candidate.path, queries, keys)
            if shape not in self._joined:
                own = next(self._grids.possible(candidate.path), None)
                self._joined[shape] = joined_layout(queries, keys, own, self._key_grid)
            return self._joined[shape]
        if self._profile.joint is None:
            return self._found_joined(candidate, projections)
        if candidate.place > 0:
            return None
        if self._tokens is None:
            raise CaptureError(
                f"{candidate.path} attends jointly to text and pictures, and the arguments of "
                f"{type(self._denoiser).__name__} do not tell where they lie: expected encoder_hidden_states with "
                "img_ids, img_shapes or a 4-D hidden_states"
            )
        if queries == keys == self._tokens.tokens:
            return self._tokens
        if queries == keys == self._tokens.picture_tokens:
            return None  # the pictures among themselves
        raise CaptureError(
            f"{candidate.path} attends with {queries} queries to {keys} keys, where the denoiser's call has "
            f"{self._tokens.tokens} tokens, {self._tokens.picture_tokens} of them of pictures: leave it out with "
            "layers="
        )

    def _found_joined(self, candidate: Candidate, projections: Projections) -> TokenLayout | None:
        """The layout of self-attention with pictures of the picture's own size joined to it."""
        queries, keys = projections.query.shape[2], projections.key.shape[2]
        own = next(self._grids.possible(candidate.path), None)
        shape = (candidate.path, queries, keys)
        if shape in self._joined:
            return self._joined[shape]
        found = None
        if projections.is_self and candidate.place == 0 and own is not None and keys % math.prod(own) == 0:
            guess = "took keys that are joined to self-attention for a reference on the picture's grid (pass profile=)"
            found = joined_layout(queries, keys, own, self._key_grid, guess=guess)
        if found is not None:
            self.joined.add(candidate.path)
            self._joined[shape] = found
        return found

    def _rule(self, candidate: Candidate) -> str | None:
        rule = self._profile.rule_of(candidate.path)
        return None if rule is None else rule.keys


def _listed_tokens(arguments: Mapping[str, Any]) -> tuple[set[int], set[int]] | None:
    """Numbers of tokens that texts (token, feature) and pictures (channel, frame, row, column) in lists may have.

    Z-Image is called so; it fills up both to a multiple of 32.
    """
    listed = [one for value in arguments.values() if isinstance(value, list) for one in value]
    tensors = [one for one in listed if isinstance(one, Tensor)]
    texts = {len(one) for one in tensors if one.ndim == 2}
    areas = {math.prod(one.shape[1:]) for one in tensors if one.ndim == 4}
    pictures = {area // patch for area in areas for patch in (1, 4, 16)}
    if not texts or not pictures:
        return None
    full_texts, full_pictures = ({math.ceil(one / 32) * 32 for one in found} for found in (texts, pictures))
    return texts | full_texts, pictures | full_pictures


def _patch_size(denoiser: nn.Module) -> int:
    size = getattr(getattr(denoiser, "config", None), "patch_size", None)
    return size if isinstance(size, int) else 1


def _numbers_of_tokens(pictures: Any) -> Iterator[int]:
    """Tokens that a denoiser may make of what it is given: the tokens themselves, or patches of a video."""
    if not isinstance(pictures, Tensor):
        return
    if pictures.ndim == 3:
        yield pictures.shape[1]
    if pictures.ndim == 5:  # channels and frames come in either order
        area = pictures.shape[3] * pictures.shape[4]
        yield from (frames * area // patch for frames in pictures.shape[1:3] for patch in (1, 4))


def _makes_layers(denoiser: nn.Module) -> bool:
    """Whether a denoiser generates a picture in layers (Qwen-Image-Layered), whatever pipeline calls it."""
    return bool(getattr(getattr(denoiser, "config", None), "use_layer3d_rope", False))
