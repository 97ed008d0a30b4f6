"""What a drafter is: something that guesses the next tokens, as a tree, for the engine to verify.

A drafter never decides what is emitted. The engine verifies every guess with the model itself, so a bad
drafter costs time and never correctness.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of guessed tokens below the last verified token.

    Nodes are in topological order: ``parents[i] < i``, and -1 stands for the last verified token. A chain has
    ``parents == [-1, 0, 1, ...]``. Siblings carry distinct tokens, in the order in which verification tries them.

    Attributes:
        token_ids: one token per node.
        parents: index of each node's parent; -1 for a child of the last verified token.
        probs: the drafter's estimate, per node, that the node will be accepted (the probability of its whole
            path). Their sum is the expected number of accepted tokens.
        proposal: for drafts that were *sampled*: row ``i`` is the distribution ``[vocab]`` from which the
            children of node ``i - 1`` were drawn without replacement (row 0: the children of the last verified
            token), shape ``[nodes + 1, vocab]``. None for deterministic drafts (a point mass on each guess).
        spec: run [SPEC] behind the last verified token and behind every node, and give its state to ``observe``.
        source: which of a drafter's ways made it, where there are several; each is judged by itself.
        instead: another draft for the same place; the engine takes the one that pays more. Only of two that were not
            sampled.
    """

    token_ids: Sequence[int] = ()
    parents: Sequence[int] = ()
    probs: Sequence[float] = ()
    proposal: Tensor | None = field(default=None, compare=False)
    spec: bool = False
    source: str = ""
    instead: Draft | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def score(self) -> float:
        """Expected number of accepted tokens: the sum of the nodes' path probabilities."""
        return float(sum(self.probs))

    def first(self, count: int) -> Draft:
        """The tree cut to its first ``count`` nodes (topological order keeps it a tree), the other one likewise."""
        instead = None if self.instead is None else self.instead.first(count)
        if count >= len(self):
            return self if instead is self.instead else replace(self, instead=instead)
        proposal = None if self.proposal is None else self.proposal[: count + 1]
        return replace(
            self,
            token_ids=self.token_ids[:count],
            parents=self.parents[:count],
            probs=self.probs[:count],
            proposal=proposal,
            instead=instead,
        )

    def rows(self, count: int | None = None) -> int:
        """Rows of the step that verifies the first ``count`` nodes (all): the last token's, theirs, [SPEC]'s."""
        count = len(self) if count is None else count
        return (count + 1) * 2 if self.spec and count else count + 1


EMPTY_DRAFT = Draft()


class Drafter(Protocol):
    """The interface that the engine drives; one object serves many requests at once.

    Life cycle of one request: ``start`` once, then any number of ``propose`` / ``observe`` pairs, then ``stop``
    exactly once, also when the request is cancelled or fails. The engine is the only caller, from one thread.

    What a drafter may have besides, and the engine uses where it is there:

    - ``bind(model, path)``: given the verifier (a ``PreTrainedModel``) and its checkpoint (None: there is none), once,
      before all else; `UsageError` where the drafter was made for another model.
    - ``check(path)``: the same question by the checkpoint's files alone, before any weight is read.
    - ``tune(verify_s, max_nodes)``: given the seconds of a verification by its rows, and the most nodes of a draft.
    - ``spec_embedding``, ``[hidden_size]``: the verifier runs [SPEC] for drafts that ask for it.
    - ``verified(request_id, draft, accepted)``: called for the drafts that were verified, before ``observe``.
    - ``candidates`` and ``recycle(request_id, token_ids, candidates)``: so many of the verifier's most likely tokens
      behind every token that was run, accepted or not, before ``observe``.
    - ``needs_states = True`` and ``read(request_id, hidden)``: the states of all tokens, ``[tokens, hidden_size]``, as
      they join the cache, before ``observe`` tells what stands behind them.
    - ``propose_cheaply(request_id, max_nodes)``: asked instead of ``propose`` while the drafter rests, because its
      drafts did not pay (`justright.engine.draft_selection`).
    """

    name: str
    needs_hidden: bool
    """Whether ``observe`` must be given the verifier's last hidden state."""

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:
        """Begin a request whose prompt is ``prompt_ids``."""
        ...

    def observe(self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None) -> None:
        """Take note of newly verified tokens.

        Args:
            request_id: the request.
            token_ids: tokens appended to the output since the last call, at least one.
            hidden: ``[hidden_size]``, the verifier's state after its final norm at the token *before* the last
                of ``token_ids`` (the state that predicted it), or that of [SPEC] behind the same token where it
                was run; None unless ``needs_hidden``.
        """
        ...

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        """Guess what follows everything observed so far, with at most ``max_nodes`` nodes (maybe none)."""
        ...

    def stop(self, request_id: Hashable) -> None:
        """Forget the request."""
        ...
