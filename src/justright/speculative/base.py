"""The drafter interface: a drafter proposes the next tokens, as a tree, for the engine to verify.

A drafter never decides the output. The engine verifies every draft token with the model itself, so a bad
drafter costs time and never correctness.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from justright.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of draft tokens below the last verified token.

    Nodes are in topological order: ``parents[i] < i``, and -1 stands for the last verified token. A chain has
    ``parents == [-1, 0, 1, ...]``. Siblings carry distinct tokens, in the order in which verification tries them.

    Attributes:
        token_ids: one token per node.
        parents: index of each node's parent; -1 for a child of the last verified token.
        probs: the drafter's estimate, per node, that the node will be accepted (the probability of its whole
            path). Their sum is the expected number of accepted tokens.
        proposal: for *sampled* drafts: row ``i`` is the distribution ``[vocab]`` from which the children of node
            ``i - 1`` were drawn without replacement (row 0: the children of the last verified token), shape
            ``[nodes + 1, vocab]``. None for deterministic drafts (a point mass on each draft token).
        spec: run [SPEC] after the last verified token and after every node, and pass its state to ``observe``.
        source: the drafter's method that made it, if there are several; each has its own record.
        instead: an alternative draft for the same position; the engine takes the one that pays more. Only for drafts
            that are not sampled.
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
        """The first ``count`` nodes (topological order keeps them a tree), and its alternative likewise."""
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
        """Rows of the step that verifies the first ``count`` nodes (default: all): last token, nodes, [SPEC]."""
        count = len(self) if count is None else count
        return (count + 1) * 2 if self.spec and count else count + 1


EMPTY_DRAFT = Draft()


def check_number(
    options: object, of: str, name: str, low: float, high: float, *, whole: bool = False
) -> None:
    """Validate a numeric option: ``name`` of ``options``, from ``low`` to ``high``, an integer if ``whole``.

    Raises:
        UsageError: it is another value; the message begins with ``of``.
    """
    value = getattr(options, name)
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not (right and low <= value <= high):
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{of}: {name} is {value!r}; allowed: {kind} from {low:g} to {high:g}")


class Drafter(ABC):
    """Base class of drafters; one object serves many requests at once.

    A drafter defines `propose`. All other methods do nothing by default.

    Life cycle: `check` and `bind` once, then `tune`; for each request `start` once, then any number of `propose` /
    `observe` pairs, then `stop` exactly once, also when the request is cancelled or fails. Between `propose` and
    `observe` come `recycle`, `verified` and `read`. The engine is the only caller, from one thread.
    """

    name: str = "drafter"
    """Its name in `Draft.source` and in reports."""
    needs_hidden: bool = False
    """Whether ``observe`` needs the verifier's last hidden state."""
    needs_states: bool = False
    """Whether `read` needs the states of all tokens."""
    candidates: int = 0
    """How many of the verifier's most likely tokens `recycle` needs after each token; 0 disables the call."""
    spec_embedding: Tensor | None = None
    """``[hidden_size]``: the embedding of [SPEC], which the verifier runs for drafts that need it; None: no [SPEC]."""

    def check(self, path: Path) -> None:  # noqa: B027  # a default, to be overridden
        """Validate from the files of the verifier's checkpoint at ``path`` that this drafter fits it.

        Raises:
            JustrightError: as `bind`.
        """

    def bind(self, model: PreTrainedModel, path: Path | None) -> None:  # noqa: B027
        """Connect to the loaded verifier; ``path`` is its checkpoint, None if it has none.

        Raises:
            JustrightError: this drafter was made for another model, or there is none for this one.
        """

    def tune(self, verify_s: Callable[[int], float], max_nodes: int) -> None:  # noqa: B027
        """Fit the drafts to this machine.

        Args:
            verify_s: seconds of a verification, by its rows.
            max_nodes: the maximum number of nodes of a draft.
        """

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:  # noqa: B027
        """Begin a request whose prompt is ``prompt_ids``."""

    @abstractmethod
    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        """Propose the continuation of all observed tokens, with at most ``max_nodes`` nodes (possibly none)."""

    def propose_cheaply(self, request_id: Hashable, max_nodes: int) -> Draft:
        """`propose` at negligible cost; called while drafts do not pay (`justright.engine.draft_selection`)."""
        return EMPTY_DRAFT

    def recycle(  # noqa: B027
        self, request_id: Hashable, token_ids: Sequence[int], candidates: Sequence[Sequence[int]]
    ) -> None:
        """Receive the verifier's most likely tokens after each of ``token_ids``, which it ran, accepted or not."""

    def verified(self, request_id: Hashable, draft: Draft, accepted: int) -> None:  # noqa: B027
        """Record that ``accepted`` tokens of ``draft`` were accepted."""

    def read(self, request_id: Hashable, hidden: Tensor) -> None:  # noqa: B027
        """Receive the states of tokens that join the cache, ``[tokens, hidden_size]``; called if `needs_states`."""

    def observe(  # noqa: B027
        self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None
    ) -> None:
        """Record newly verified tokens.

        Args:
            request_id: the request.
            token_ids: tokens appended to the output since the last call, at least one.
            hidden: ``[hidden_size]``, the verifier's state after its final norm at the token *before* the last
                of ``token_ids`` (the state that predicted it), or that of [SPEC] after the same token if it
                was run; None unless `needs_hidden`.
        """

    def stop(self, request_id: Hashable) -> None:  # noqa: B027
        """Forget the request."""
