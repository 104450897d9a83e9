"""The first recorded step: what is only known once it is over, gathered until then."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor, nn

from attrace.recorder.capture.host_copies import HostCopier, HostCopy
from attrace.recorder.capture.outputs import output_weights
from attrace.recorder.capture.sites import Candidate, shorten
from attrace.recorder.labels.contexts import KeysOfContext
from attrace.recorder.session.options import RunOptions
from attrace.recorder.session.problems import over_limit
from attrace.recorder.writing.encode import encode
from attrace.recorder.writing.plan import SeenSite, SiteKey
from attrace.schemas import CaptureError


class FirstStep:
    """The sites as they are seen, in the order of their calls, with their values.

    Parameters
    ----------
    options
        What to record and how.
    """

    def __init__(self, options: RunOptions) -> None:
        self.sites: list[SeenSite] = []
        """Each in every kept branch."""
        self.parts: list[dict[str, HostCopy]] = []
        """What was captured of each of the sites, by array name."""
        self.outputs: dict[SiteKey, HostCopy] = {}
        """Weights of the output projections of the sites whose values are stored: (head, feature, channel)."""
        self.left_out: dict[str, list[str]] = {}
        """Sites of which something is not recorded, or nothing, by the reason."""
        self.modules_left_out: dict[nn.Module, None] = {}
        """Modules of which nothing is recorded, though layers= chose them."""
        self._options = options
        self._copy = HostCopier()
        self._order: dict[str, int] = {}
        self._nbytes = 0

    def take(self, candidate: Candidate, branch: str, keys: KeysOfContext, planned_steps: int | None) -> None:
        """Keep a site that is being called, and its values.

        Raises
        ------
        SizeLimitError
            If the step is itself larger than the limit, before it fills the memory.
        """
        weights = self._output_weights(candidate, keys) if self._options.values else None
        channels = None if weights is None else weights.shape[-1]
        encoded = encode(keys.projections, self._options.encoding, planned_steps, channels=channels)
        order = self._order.setdefault(candidate.path, len(self._order))
        module = type(candidate.module).__name__
        self.sites.append(
            SeenSite(candidate.path, branch, order, module, encoded.shape, keys.labels(), keys.query_grid)
        )
        self.parts.append({name: self._copy(part) for name, part in encoded.parts.items()})
        if weights is not None:
            self.outputs[self.sites[-1].key] = self._copy(weights)
        self._nbytes += sum(part.nbytes for part in self.parts[-1].values()) + encoded.shape.output_bytes
        limit = self._options.limit_bytes
        if limit is not None and self._nbytes > limit:
            what = f"{len(self.sites)} sites of the first step alone take"
            raise over_limit(what, self._nbytes, limit, "fewer layers= or contexts")

    def _output_weights(self, candidate: Candidate, keys: KeysOfContext) -> Tensor | None:
        """Weights of the site's output projection; None, with the reason noted, where its values are not stored."""
        try:
            return output_weights(candidate, keys.projections)
        except CaptureError as reason:
            self.leave_out(candidate.path, str(reason))
            return None

    def leave_out(self, path: str, reason: str) -> None:
        """Note that something of a site is not recorded."""
        paths = self.left_out.setdefault(reason, [])
        if path not in paths:
            paths.append(path)

    def check_seen(self, candidates: Collection[Candidate]) -> None:
        """Note what was not called, and refuse to go on where attention was not seen that should have been.

        Raises
        ------
        CaptureError
            If a module was not seen to attend (unless gaps are allowed), or there is nothing to record.
        """
        seen = {site.path for site in self.sites}
        unseen = []
        for one in candidates:
            if one.path in seen or one.module in self.modules_left_out:
                continue
            # an added call (IP-Adapter) is left out by its processor where its scale is 0
            self.leave_out(one.path, "not called in the first recorded step")
            if one.place == 0:
                unseen.append(one.path)
        if unseen and not self._options.allow_gaps:
            raise CaptureError(
                f"{len(unseen)} of {len(candidates)} attention modules were not seen to attend: {shorten(unseen)}. "
                "Either the model skips them (leave them out with layers=, or pass allow_gaps=True), or they compute "
                "attention in a way that this capture= does not see: try another"
            )
        if not seen:
            raise CaptureError(
                f"all of the {len(self.modules_left_out)} attention modules have the picture's own features as keys, "
                "or none of the contexts that context= asks for: pass self_attention=True to record the former, or, if "
                "text and picture share one self-attention, profile= with joint='text-first' or 'image-first'"
            )

    def guesses(self, others: Iterable[str | None]) -> list[str]:
        """Why labels may be wrong, each once: `others`, then those of the keys."""
        possible = [*others, *(site.labels.guess for site in self.sites)]
        return list(dict.fromkeys(guess for guess in possible if guess is not None))
