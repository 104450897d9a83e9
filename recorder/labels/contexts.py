"""What the keys of an attention call are: one context as a rule, several where a model attends to them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

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
        self._reader = LayoutReader(_patch_size(denoiser), profile.joint or "text-first", key_grid)
        self._tokens: TokenLayout | None = None
        self._joined: dict[tuple[str, int, int], TokenLayout | None] = {}
        self._contexts: dict[str, Context] = {}

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """Read from the arguments of a call of the denoiser where text and pictures lie, if its attention is joint."""
        self._tokens = self._reader.read(arguments) if self._profile.joint is not None else None

    def is_left_out(self, candidate: Candidate, projections: Projections) -> bool:
        """Whether a call is of nothing that is to be recorded."""
        if self._is_own(candidate, projections):
            return not self._self_attention
        if self._wanted is None or self._profile.joint is not None or candidate.place > 0:
            return False
        layout = self._layout(candidate, projections)
        found = (self._whole(candidate, projections).context,) if layout is None else layout.contexts
        return not any(one in self._wanted for one in found)

    def split(self, candidate: Candidate, projections: Projections) -> Iterator[KeysOfContext]:
        """What to record of a call."""
        layout = self._layout(candidate, projections)
        if layout is None:
            yield self._whole(candidate, projections)
            return
        wanted = self._wanted
        if wanted is not None and self._profile.joint is None:  # other layers may have the other contexts
            wanted = tuple(one for one in wanted if one in layout.contexts)
        contexts = layout.recorded(wanted, self_attention=self._self_attention)
        for context, part in layout.split(projections, contexts):
            yield KeysOfContext(part, context, layout.query_grid, partial(layout.labels, context))

    def _is_own(self, candidate: Candidate, projections: Projections) -> bool:
        """Whether a call attends to the generated picture alone."""
        replaced = self._rule(candidate) == "replaced"
        return projections.is_self and not replaced and self._layout(candidate, projections) is None

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
            self._contexts[candidate.path] = labels().context
        return KeysOfContext(projections, self._contexts[candidate.path], query_grid, labels)

    def _layout(self, candidate: Candidate, projections: Projections) -> TokenLayout | None:
        """Where what lies among the tokens of a call; None if its keys are all of one context."""
        queries, keys = projections.query.shape[2], projections.key.shape[2]
        if self._rule(candidate) == "joined":
            shape = (candidate.path, queries, keys)
            if shape not in self._joined:
                own = next(self._grids.possible(candidate.path), None)
                self._joined[shape] = joined_layout(queries, keys, own, self._key_grid)
            return self._joined[shape]
        if self._profile.joint is None or candidate.place > 0:
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

    def _rule(self, candidate: Candidate) -> str | None:
        rule = self._profile.rule_of(candidate.path)
        return None if rule is None else rule.keys


def _patch_size(denoiser: nn.Module) -> int:
    size = getattr(getattr(denoiser, "config", None), "patch_size", None)
    return size if isinstance(size, int) else 1
