"""The first recorded step: what is only known once it is over, gathered until then."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from torch import nn

from attrace.recorder.capture.host_copies import HostCopy
from attrace.recorder.capture.sites import Candidate, shorten
from attrace.recorder.labels.keys import Grid, KeyLabels
from attrace.recorder.writing.encode import SiteShape
from attrace.recorder.writing.plan import SeenSite
from attrace.schemas import CaptureError


@dataclass
class FirstStep:
    """The sites as they are seen, in the order of their calls, with their values."""

    sites: list[SeenSite] = field(default_factory=list)
    """Each in every kept branch."""
    parts: list[dict[str, HostCopy]] = field(default_factory=list)
    """The values of each of the sites, by array name."""
    left_out: dict[nn.Module, None] = field(default_factory=dict)
    """Modules that are not recorded: they attend to the picture's own features, or to no context that is wanted."""
    _order: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        candidate: Candidate,
        branch: str,
        shape: SiteShape,
        parts: dict[str, HostCopy],
        *,
        labels: KeyLabels,
        query_grid: Grid | None,
    ) -> None:
        """Keep a site that is being called, and its values."""
        order = self._order.setdefault(candidate.path, len(self._order))
        module = type(candidate.module).__name__
        self.sites.append(SeenSite(candidate.path, branch, order, module, shape, labels, query_grid))
        self.parts.append(parts)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return sum(part.nbytes for parts in self.parts for part in parts.values())

    def check_seen(self, candidates: Collection[Candidate], *, allow_gaps: bool) -> None:
        """Refuse to go on where attention was not seen that should have been.

        Raises
        ------
        CaptureError
            If a module was not seen to attend (unless gaps are allowed), or there is nothing to record.
        """
        seen = {site.path for site in self.sites}
        unseen = [
            one.path
            for one in candidates
            # an added call (IP-Adapter) is left out by its processor where its scale is 0
            if one.path not in seen and one.module not in self.left_out and one.place == 0
        ]
        if unseen and not allow_gaps:
            raise CaptureError(
                f"{len(unseen)} of {len(candidates)} attention modules were not seen to attend: {shorten(unseen)}. "
                "Either the model skips them (leave them out with layers=, or pass allow_gaps=True), or they compute "
                "attention in a way that this capture= does not see: try another"
            )
        if not seen:
            raise CaptureError(
                f"all of the {len(self.left_out)} attention modules have the picture's own features as keys, or "
                "none of the contexts that context= asks for: pass self_attention=True to record the former"
            )

    def guesses(self, others: Iterable[str | None]) -> list[str]:
        """Why labels may be wrong, each once: `others`, then those of the keys."""
        possible = [*others, *(site.labels.guess for site in self.sites)]
        return list(dict.fromkeys(guess for guess in possible if guess is not None))
