"""``justright chat``: a conversation with a person or a script."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from justright.cli import options as opt
from justright.cli.output import Terminal, output_of
from justright.errors import JustrightError, ResourceError, UsageError

if TYPE_CHECKING:
    from justright.cli.answer_writer import ReasoningShown
    from justright.cli.prepare import Message
    from justright.engine.chat_modes import Reasoning
    from justright.engine.generation import ModeParams
    from justright.engine.llm import LLM
    from justright.engine.prepared import PreparedModel
    from justright.engine.request import Request

_HELP = """\
/help         show this list
/reset        delete the conversation except the system message
/system TEXT  set the system message; without TEXT, remove it
/effort NAME  set the reasoning effort: none, minimal, low, medium, high, auto, escalate; without NAME, reset it
/stats        show speed and acceptance of the last answer
/exit         leave, like Ctrl-D
Ctrl-C stops an answer. Any other text is sent to the model."""


def chat(
    ctx: typer.Context,
    model: opt.Model,
    system: opt.System = None,
    as_json: opt.Json = False,
    stats: opt.Stats = True,
    max_tokens: opt.MaxTokens = 1024,
    temperature: opt.Temperature = 0.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    seed: opt.Seed = None,
    generation_config: opt.GenerationConfig = "auto",
    stop: opt.Stop = None,
    stop_in_reasoning: opt.StopInReasoning = False,
    draft: opt.Draft = None,
    draft_option: opt.DraftOption = None,
    switch: opt.Switch = None,
    effort: opt.Effort = None,
    thinking_budget: opt.ThinkingBudget = None,
    factor: opt.Factor = None,
    show_reasoning: opt.ShowReasoning = None,
    closing: opt.Closing = None,
    scorer: opt.ScorerName = "probe",
    threshold: opt.Threshold = None,
    dtype: opt.Dtype = "float32",
    device: opt.Device = "auto",
    cpu_kernels: opt.CpuKernels = None,
    weights: opt.Weights = None,
    max_context: opt.MaxContext = None,
    cache: opt.Cache = "grow",
) -> None:
    """Chat with a model, turn by turn; /help lists the commands.

    Without a terminal, every line of stdin is one turn, and only answers go to stdout.

    When the conversation no longer fits into the context, its oldest turns are dropped, and a line reports it.
    """
    from justright.cli.answer_writer import reasoning_shown
    from justright.cli.prepare import load, prepare, sampling_of
    from justright.cli.thinking import settled_thinking, thinking_of

    output = output_of(ctx)
    ready = prepare(model, output, opt.engine_options(ctx, reuse_prefix=True))
    params = sampling_of(ctx, ready)
    if not ready.has_template:
        raise UsageError(f"{model} has no chat template, so it cannot chat: use `justright generate`")
    thinking = settled_thinking(thinking_of(ctx), ready.defaults)
    ready.check_reasoning(thinking)
    conversation = Conversation(ready, max_tokens, system)
    conversation.fit("Hello", keep=False)  # fails now if the template rejects the system message
    limits = {"max_tokens": max_tokens, "stop": tuple(stop or ()), "stop_in_reasoning": stop_in_reasoning}
    shown = reasoning_shown(show_reasoning, output)
    session = _Session(
        load(ready, output, model), conversation, params, limits, output, thinking, thinking, shown
    )
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not output.json
    if interactive:
        output.note(f"{model}, {ready.context:,} tokens of context. /help lists the commands, Ctrl-D leaves.")
    session.run(interactive=interactive)


@dataclass(slots=True)
class Conversation:
    """The turns so far, as many as fit into the context.

    `fit` adds a user message, `answered` the model's answer; `withdraw` removes an unanswered message.

    Attributes:
        ready: tokenizer, template and context.
        max_tokens: tokens to reserve for an answer (at most a quarter of the context).
        system: the system message.
        turns: messages, alternately the user's and the assistant's.
    """

    ready: PreparedModel
    max_tokens: int
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def fit(self, text: str, *, keep: bool = True) -> tuple[list[int], int]:
        """Add a user message, dropping the oldest turns until the conversation fits.

        Args:
            text: the user message.
            keep: if False, only compute the result and leave the conversation unchanged.

        Returns:
            The prompt's token ids, and the number of dropped exchanges (a question and its answer).

        Raises:
            ResourceError: the message alone does not fit; the conversation is unchanged.
            UsageError: the template rejects it.
        """
        from justright.engine.checks import check_prompt

        reserve = min(self.max_tokens, self.ready.context // 4)
        turns = [*self.turns, {"role": "user", "content": text}]
        forgotten = 0
        while True:
            ids = self.ready.tokens([*self._start(), *turns])
            if len(ids) + reserve <= self.ready.context or len(turns) == 1:
                break
            turns = turns[2:]
            forgotten += 1
        check_prompt(ids, self.ready.context, "this message")
        if keep:
            self.turns = turns
        return ids, forgotten

    @property
    def messages(self) -> list[Message]:
        """The system message and all turns."""
        return [*self._start(), *self.turns]

    def answered(self, request: Request) -> None:
        """Add the model's answer, without its reasoning."""
        from justright.cli.running import reasoning_and_content

        self.turns.append({"role": "assistant", "content": reasoning_and_content(request)[1]})

    def withdraw(self) -> None:
        """Remove the last user message."""
        self.turns.pop()

    def reset(self) -> None:
        """Remove all turns."""
        self.turns.clear()

    def _start(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]


@dataclass(slots=True)
class _Session:
    """Reads lines, runs commands, prints answers."""

    engine: LLM
    conversation: Conversation
    params: ModeParams
    limits: Mapping[str, Any]
    output: Terminal
    started: Reasoning
    thinking: Reasoning
    shown: ReasoningShown
    last: Request | None = None
    answers: int = 0
    warned: bool = False

    def run(self, *, interactive: bool) -> None:
        """Run until the input ends or /exit."""
        for line in _lines(interactive=interactive):
            text = line.strip()
            if not text:
                continue
            if text == "/exit":
                return
            try:
                if text.startswith("/"):
                    self._command(text)
                else:
                    self._say(text)
            except (ResourceError, UsageError) as error:
                # A failed turn ends a piped conversation; an unknown command does not.
                if not interactive and not text.startswith("/"):
                    raise
                line = f"error: {error}"
                self.output.console(stderr=True).print(line, style="red", markup=False, soft_wrap=True)

    def _command(self, text: str) -> None:
        from justright.cli.running import stats_line

        name, _, argument = text.partition(" ")
        say = self.output.console(stderr=True).print
        if name == "/help":
            say(_HELP, markup=False)
        elif name == "/reset":
            self.conversation.reset()
            say("the conversation is deleted")
        elif name == "/system":
            self._set_system(argument.strip() or None)
            say("the system message is set" if argument.strip() else "the system message is removed")
        elif name == "/effort":
            self._set_effort(argument.strip() or None)
            say(f"effort {argument.strip()}" if argument.strip() else "the effort is reset")
        elif name == "/stats":
            drafts = self.engine.drafter is not None
            line = stats_line(self.last, drafts=drafts) if self.last else "no answer yet"
            say(line, markup=False, soft_wrap=True)
        else:
            raise UsageError(
                f"unknown command {name}; allowed: /help, /reset, /system, /effort, /stats, /exit"
            )

    def _set_effort(self, effort: str | None) -> None:
        from dataclasses import replace

        thinking = replace(self.started, effort=effort, factor=None) if effort else self.started
        self.conversation.ready.check_reasoning(thinking)
        self.thinking = thinking

    def _set_system(self, system: str | None) -> None:
        before, self.conversation.system = self.conversation.system, system
        try:
            self.conversation.fit("Hello", keep=False)
        except JustrightError:
            self.conversation.system = before
            raise

    def _say(self, text: str) -> None:
        """Run one turn; if Ctrl-C stops the answer, its text so far stays in the conversation."""
        from justright.cli.answer_writer import AnswerWriter
        from justright.cli.running import as_object, cancel_on_interrupt, thought_note, until

        _, forgotten = self.conversation.fit(text)
        if forgotten:
            self.output.note(
                f"(the conversation exceeds the context of {self.conversation.ready.context:,} tokens: the oldest "
                f"{forgotten} turn{'s are' if forgotten > 1 else ' is'} dropped)"
            )
        request = self.engine.conversation(
            self.conversation.messages,
            self.params,
            thinking=self.thinking,
            **self.limits,
        )
        writer = AnswerWriter(request, self.output, self.shown)
        with cancel_on_interrupt([request]) as interrupt:
            emissions = self.engine.stream_requests([request])
            for emission in until(interrupt, emissions):
                if not self.output.json:
                    writer.write(emission)
        self.last = request
        if request.text or request.finish_reason != "cancelled":
            self.conversation.answered(request)
        else:
            self.conversation.withdraw()
        self.answers += 1
        if self.output.json:
            turn = {"turn": self.answers, "prompt": text, "forgotten_turns": forgotten}
            drafts, hidden = self.engine.drafter is not None, self.shown == "hidden"
            self.output.object(turn | as_object(request, drafts=drafts, hidden=hidden))
        else:
            writer.end()
        if (warning := thought_note(request)) is not None and not self.warned:
            self.output.note(warning)
            self.warned = True
        if interrupt.seen and not sys.stdin.isatty():
            raise typer.Exit(130)


def _lines(*, interactive: bool) -> Iterator[str]:
    """Yield lines of stdin; in a terminal with a prompt and, if available, readline's editing."""
    if not interactive:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it gives input() editing and history
    while True:
        try:
            line = input("you> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)")
            continue
        yield line
