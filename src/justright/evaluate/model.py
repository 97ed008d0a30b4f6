"""justright's engine as a model of lm-eval.

Prompts, windows and answers are those of lm-eval's own ``hf`` backend, so that results can be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from justright.engine.chat_modes import Reasoning, chat_tokens
from justright.engine.llm import LLM
from justright.engine.request import Request
from justright.engine.sampler import SamplingParams
from justright.engine.step import StepInput
from justright.errors import UsageError

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names in tasks for the maximum tokens of an answer; the first one given counts."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

Pair = tuple[tuple[str, str], list[int], list[int]]


class EngineLM(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """An `LLM` with lm-eval's interface.

    Args:
        engine: with a tokenizer.
        max_tokens: of an answer, unless the task sets it.
        template: further arguments of the chat template.
        thinking: how conversations reason; its mode (slow or fast) also scores texts.
        progress: show progress bars on stderr.

    Attributes:
        tokens: task -> tokens of each answer, with its reasoning.
    """

    def __init__(
        self,
        engine: LLM,
        max_tokens: int = 256,
        template: dict[str, Any] | None = None,
        thinking: Reasoning | None = None,
        *,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if engine.tokenizer is None:
            raise UsageError("evaluation needs a tokenizer")
        self.engine = engine
        self.tokenizer: PreTrainedTokenizerFast = engine.tokenizer
        self.max_tokens = max_tokens
        self.template = template or {}
        self.thinking = thinking
        self.factor = 0.0 if thinking is None else thinking.plan(max_tokens).factor
        self._conversations: dict[str, list[dict[str, str]]] = {}
        self.progress = progress
        self.tokens: dict[str, list[int]] = defaultdict(list)

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        found = self.tokenizer.eos_token_id
        if found is None:
            raise UsageError("the tokenizer has no end token, but this task needs one; choose another")
        return int(found)

    @property
    def prefix_token_id(self) -> int:
        """First token for scoring without a context: the begin token, else the end token."""
        found = self.tokenizer.bos_token_id
        return self.eot_token_id if found is None else int(found)

    @property
    def tokenizer_name(self) -> str:
        """Key of lm-eval's request cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; a text that starts with the begin token gets no second one."""
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token or self.tokenizer.eos_token
            add_special_tokens = not (begin and string.startswith(begin))
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation."""
        if add_generation_prompt:
            chat_tokens(self.tokenizer, chat_history, **self.template)  # raises clear errors
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.template,
        )
        if self.thinking is not None and add_generation_prompt:
            self._conversations[str(text)] = [dict(turn) for turn in chat_history]
        return str(text)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate answers, as many in parallel as the engine has slots."""
        ours = [self._request(*one.args) for one in requests]
        with tqdm(total=len(ours), desc="answers", disable=disable_tqdm or not self.progress) as bar:
            for chunk in self.engine.stream_requests(ours):
                if chunk.finish_reason is not None:
                    bar.update()
        texts = [self._text(*pair) for pair in zip(requests, ours, strict=True)]
        for one, request, text in zip(requests, ours, texts, strict=True):
            self.tokens[str(one.task_name)].append(len(request.token_ids))
            self.cache_hook.add_partial("generate_until", one.args, text)
        return texts

    def _text(self, one: Instance, request: Request) -> str:
        """The answer up to the first stop string; an incomplete last character stays, as in transformers."""
        if self.thinking is not None:
            return request.text
        text = str(self.tokenizer.decode(request.token_ids, skip_special_tokens=True))
        for stop in self._stop(one.args[1]):
            text = text.partition(stop)[0]
        return text

    def _stop(self, options: dict[str, Any]) -> tuple[str, ...]:
        """Stop strings: the task's, and the end token's text; special tokens with such a text also stop."""
        until = options.get("until") or ()
        texts = (until,) if isinstance(until, str) else tuple(until)
        return tuple(text for text in (*texts, self.tokenizer.eos_token) if text)

    def _request(self, context: str, options: dict[str, Any]) -> Request:
        stop = self._stop(options)
        options = {name: value for name, value in options.items() if name != "until"}
        limits = [value for name in _LIMITS if (value := options.pop(name, None)) is not None]
        most = int(limits[0]) if limits else self.max_tokens
        sampled = options.pop("do_sample", None)
        if sampled is None:
            sampled = float(options.get("temperature") or 0) > 0
        chosen = {name: options.pop(name) for name in _SAMPLING if name in options}
        if options:
            raise UsageError(
                f"the task sets {', '.join(options)}; allowed: until, do_sample, {', '.join(_LIMITS)}, "
                f"{', '.join(_SAMPLING)}"
            )
        if not sampled:
            chosen["temperature"] = 0.0
        if self.thinking is not None:
            return self._conversation(context, SamplingParams(**chosen), most, stop)
        begins = bool(self.tokenizer.bos_token) and context.startswith(self.tokenizer.bos_token)
        ids = self.tok_encode(context, add_special_tokens=not begins)
        capacity = self.engine.verifier.max_tokens - most
        if capacity < 1:  # `hf` raises; here the prompt stays, and the answer is shorter
            capacity = self.engine.verifier.max_tokens - 1
        ids = ids[-capacity:]
        request = self.engine.request(ids, SamplingParams(**chosen), max_tokens=most, stop=stop)
        special = self.tokenizer.added_tokens_decoder.items()
        request.stop_token_ids |= {
            i for i, one in special if one.special and any(s in one.content for s in stop)
        }
        return request

    def _conversation(
        self, context: str, params: SamplingParams, max_tokens: int, stop: tuple[str, ...]
    ) -> Request:
        """The request for a question in lm-eval's chat template, rewritten in the template of its mode."""
        turns = self._conversations.get(context)
        if turns is None:
            raise UsageError("an effort needs conversations; put questions into the chat template (--chat)")
        return self.engine.conversation(
            turns, params, thinking=self.thinking, template=self.template, max_tokens=max_tokens, stop=stop
        )

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in disjoint windows, each with as much context as possible."""
        found = []
        for one in tqdm(requests, desc="texts", disable=disable_tqdm or not self.progress):
            (text,) = one.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.engine.verifier.max_tokens,
                context_len=1,
            )
            pairs = [(("", ""), *make_disjoint_window(window)) for window in windows]
            found.append(sum(score for score, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        found = []
        hidden = disable_tqdm or not self.progress
        for texts, context, continuation in tqdm(requests, desc="continuations", disable=hidden):
            found.append(self._score(context, continuation))
            if texts[0]:
                self.cache_hook.add_partial("loglikelihood", texts, found[-1])
        return found

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-probability of a continuation, and whether greedy decoding gives it.

        The prefix shared with the previous context (the choices of one question) is not computed again.
        """
        verifier = self.engine.verifier
        most = verifier.max_tokens
        if len(continuation) > most:
            raise UsageError(
                f"a continuation of {len(continuation)} tokens does not fit the context of {most}; give a larger one"
            )
        context = (list(context) or [self.prefix_token_id])[-(most + 1 - len(continuation)) :]
        shared = verifier.reuse(0, context, self.factor)
        ids = [*context[shared:], *continuation[:-1]]
        first = len(context) - shared - 1  # index of the last token before the continuation
        score, greedy = 0.0, True
        for begin in range(0, len(ids), verifier.prefill_chunk):
            chunk = ids[begin : begin + verifier.prefill_chunk]
            [output] = verifier.step([StepInput(0, chunk, factor=self.factor)])
            verifier.keep(0, range(len(chunk)))
            skip = max(0, first - begin)
            if skip >= len(chunk):
                continue
            start = begin + skip - first
            targets = torch.tensor(
                continuation[start : start + len(chunk) - skip], device=output.logits.device
            )
            logits = output.logits[skip:].float()
            score += float(torch.log_softmax(logits, -1).gather(1, targets[:, None]).sum())
            greedy &= bool((logits.argmax(-1) == targets).all())
        return score, greedy
