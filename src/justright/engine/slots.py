"""Which sequence has which slot of the verifier, what of it can be reused, and what memory is left."""

from __future__ import annotations

from justright.engine.model_runner import Verifier
from justright.engine.request import Request
from justright.engine.sequence import Active


class Places:
    """The verifier's slots: those that decode are 0, 1, 2, ...; the one whose prompt is being run comes behind them.

    A finished sequence stays in its slot until the place is needed, if ``reuse_prefix`` says so: a prompt that begins
    like it, in the same mode of the switch, then runs only what is new. What it shares with a sequence that still runs
    is copied.

    Args:
        verifier: the model.
        reuse_prefix: see above.
        cache_tokens: the most tokens of keys and values at once, over all slots; a request takes room for its prompt
            and for all that it may emit, so none is ever stopped for want of memory. None: as many as it gets.
        spec_rows: the most [SPEC] rows of a sequence's step. They come beside the tokens: a draft is never longer than
            what its request may still emit, so its own rows lie within the request's tokens.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        reuse_prefix: bool = False,
        cache_tokens: int | None = None,
        spec_rows: int = 0,
    ) -> None:
        self.verifier = verifier
        self.reuse_prefix = reuse_prefix
        self.cache_tokens = cache_tokens
        self.spec_rows = spec_rows
        self.decoding: list[Active] = []
        self.joining: Active | None = None

    @property
    def all(self) -> list[Active]:
        """Every sequence that has a slot."""
        return self.decoding if self.joining is None else [*self.decoding, self.joining]

    @property
    def reserved_tokens(self) -> int:
        """Tokens of cache that the sequences may come to use."""
        return sum(self.needed(active.request) for active in self.all)

    def needed(self, request: Request) -> int:
        """Tokens of cache that a request may come to use."""
        return min(len(request.prompt_ids) + request.max_tokens + self.spec_rows, self.verifier.max_tokens)

    def has_room(self, request: Request) -> bool:
        """Whether a request can join now; where nobody else is, it can (its prompt may have grown by escalation)."""
        if self.joining is not None or len(self.decoding) == self.verifier.slots:
            return False
        if self.cache_tokens is None or not self.all:
            return True
        return self.reserved_tokens + self.needed(request) <= self.cache_tokens

    def slot(self, active: Active) -> int:
        """Where a sequence is, now; a step may change it."""
        return len(self.decoding) if active is self.joining else self.decoding.index(active)

    def take(self, active: Active, *, reuse: bool = True) -> int:
        """Give a sequence the free slot that holds the most of its prompt, or a copy of what another holds of it.

        Returns:
            How many tokens of the prompt need not be run.
        """
        request, first = active.request, len(self.decoding)
        verifier, shared, copied, source = self.verifier, 0, 0, first
        if self.reuse_prefix and reuse:
            factor, free = request.plan.factor, range(first, verifier.slots)
            found = [verifier.shared(slot, request.prompt_ids, factor) for slot in range(verifier.slots)]
            source = max(range(first), key=found.__getitem__, default=first)
            copied = found[source] if source < first else 0
            # What a copy gives as well is no reason to cut a finished sequence.
            gains = {slot: found[slot] if found[slot] > copied else 0 for slot in free}
            best = max(free, key=lambda slot: (gains[slot], -verifier.cache.lengths[slot]))
            verifier.swap(best, first)
            if gains[best]:
                shared = verifier.reuse(first, request.prompt_ids, factor)
        if not shared:
            verifier.clear(first)
        self.joining = active
        if self.cache_tokens is not None:
            self._make_room(first, request)
        if copied > shared:
            verifier.copy(source, first, copied)
        return max(shared, copied)

    def seat(self, active: Active) -> None:
        """A sequence's prompt was run: from now on it decodes."""
        assert active is self.joining
        self.joining = None
        self.decoding.append(active)

    def free(self, active: Active) -> None:
        """Take a sequence's slot from it, keeping those that are in use together."""
        slot = self.slot(active)
        if active is self.joining:
            self.joining = None
        else:
            last = len(self.decoding) - 1
            self.decoding[slot] = self.decoding[last]
            self.decoding.pop()
            self.verifier.swap(last, slot)
            if self.joining is not None:
                self.verifier.swap(last, last + 1)
            slot = last if self.joining is None else last + 1
        if not self.reuse_prefix:
            self.verifier.clear(slot)

    def _make_room(self, slot: int, request: Request) -> None:
        """Reserve all that a request may need, and give back what finished sequences hold beyond the limit."""
        cache, limit = self.verifier.cache, self.cache_tokens
        assert limit is not None
        for other in reversed(range(slot + 1, cache.slots)):
            if self.reserved_tokens + sum(cache.capacities[slot + 1 :]) <= limit:
                break
            self.verifier.release(other)
        cache.fit(slot, self.needed(request))
