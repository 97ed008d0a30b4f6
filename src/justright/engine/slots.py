"""The assignment of sequences to the verifier's slots, prefix reuse, and the remaining memory."""

from __future__ import annotations

from justright.engine.model_runner import Verifier
from justright.engine.request import Request
from justright.engine.sequence import Active


class Slots:
    """The verifier's slots: decoding sequences have 0, 1, 2, ...; the one in prefill comes after them.

    With ``reuse_prefix``, a finished sequence stays in its slot until the slot is needed: a prompt with the
    same prefix in the same mode then runs only its new part. A prefix shared with a running sequence is
    copied.

    Args:
        verifier: the model.
        reuse_prefix: see above.
        cache_tokens: the maximum number of tokens in the KV cache, over all slots; a request reserves its prompt and
            its maximum output, so none is ever stopped for lack of memory. None: no limit.
        spec_rows: the maximum number of [SPEC] rows of a sequence's step. They are extra: a draft is never
            longer than the remaining output of its request, so its own rows lie within the request's tokens.
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
        """Cache tokens that the sequences may need at most."""
        return sum(self.needed(active.request) for active in self.all)

    def needed(self, request: Request) -> int:
        """Cache tokens that a request may need at most."""
        return min(len(request.prompt_ids) + request.max_tokens + self.spec_rows, self.verifier.max_tokens)

    def has_room(self, request: Request) -> bool:
        """Whether a request can join now; always true if none runs (escalation may have lengthened its prompt)."""
        if self.joining is not None or len(self.decoding) == self.verifier.slots:
            return False
        if self.cache_tokens is None or not self.all:
            return True
        return self.reserved_tokens + self.needed(request) <= self.cache_tokens

    def slot(self, active: Active) -> int:
        """A sequence's current slot; a step may change it."""
        return len(self.decoding) if active is self.joining else self.decoding.index(active)

    def take(self, active: Active, *, reuse: bool = True) -> int:
        """Give a sequence the free slot with the longest shared prefix, or a copy of another slot's prefix.

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
            # A finished sequence is not truncated where a copy gives the same prefix.
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
        """Mark a sequence as decoding after its prefill."""
        assert active is self.joining
        self.joining = None
        self.decoding.append(active)

    def free(self, active: Active) -> None:
        """Release a sequence's slot, and keep the slots in use contiguous."""
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
        """Reserve all that a request may need, and free what finished sequences hold beyond the limit."""
        cache, limit = self.verifier.cache, self.cache_tokens
        assert limit is not None
        for other in reversed(range(slot + 1, cache.slots)):
            if self.reserved_tokens + sum(cache.capacities[slot + 1 :]) <= limit:
                break
            self.verifier.release(other)
        cache.fit(slot, self.needed(request))
