"""A request while it holds a slot, and what it puts into a step and takes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from justright.draft.base import Draft
from justright.engine.request import Request
from justright.engine.sampling import Sampler
from justright.engine.speculation import Speculation
from justright.engine.step import StepInput, StepOutput
from justright.engine.text import TextStream
from justright.switch.thinking import ThoughtTracker


@dataclass(slots=True)
class Active:
    """A request that holds a slot."""

    request: Request
    sampler: Sampler
    record: Speculation
    stream: TextStream | None
    tracker: ThoughtTracker | None
    last_token: int = -1
    confidence: float = 1.0

    @property
    def factor(self) -> float:
        """Of the switch, in the next step."""
        return self.request.plan.factor if self.tracker is None else self.tracker.factor

    @property
    def forced(self) -> list[int]:
        """Tokens that come next whatever the model thinks."""
        return [] if self.tracker is None else self.tracker.forced

    def ends_step(self, token_id: int) -> bool:
        """Note a chosen token; True if what follows needs another forward."""
        return self.tracker is not None and self.tracker.push(token_id)


def state_to_draft_from(output: StepOutput, node: int) -> Tensor:
    """What a drafter goes on from behind ``node``: [SPEC]'s state if it was run there, else the node's own."""
    return output.hidden[node] if output.spec_hidden is None else output.spec_hidden[node]


def prefill_factor(request: Request) -> float:
    """Of the switch, on the prompt."""
    plan = request.plan
    return plan.factor if plan.prefill is None else plan.prefill


def chain(token_ids: Sequence[int]) -> Draft:
    """A draft of tokens that are certain."""
    return Draft(list(token_ids), [i - 1 for i in range(len(token_ids))], [1.0] * len(token_ids))


def step_input(slot: int, active: Active, draft: Draft) -> StepInput:
    """What is run of a sequence: the last token, the draft below it, and [SPEC] behind each if the draft wants it."""
    tokens = [active.last_token, *draft.token_ids]
    straight = all(parent == index - 1 for index, parent in enumerate(draft.parents))
    parents = None if straight else [parent + 1 for parent in draft.parents]
    spec = len(tokens) if draft.spec and len(draft) else 0
    return StepInput(slot, tokens, parents, active.factor, spec)
