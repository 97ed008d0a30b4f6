"""Training data that the verifier generates itself: short prompts, sampled continuations, and their hidden states.

A drafter predicts the output of *this* verifier, so it learns from nothing else (arXiv:2510.07535, section 4: prompts
of 64 tokens, 256 tokens sampled). A shard is one batch of sequences, in a safetensors file that is written whole or
not at all; a run that was killed resumes with the next shard.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from justright.engine.model_runner import Verifier
from justright.engine.step import StepInput
from justright.errors import ResourceError, UsageError
from justright.files import check_folder, write_whole
from justright.training.prompts import Prompts
from justright.training.shard import Shard

TEACHER_TOKENS = 8
"""Number of most likely tokens of the verifier's distribution that are kept as targets."""

FINGERPRINT = "fingerprint"
PARTIAL = "data.json.partial"
"""Incomplete record of a folder, left by a full disk or a killed run."""

_EVALUATION = "held-out"
_ROW_NUMBERS = 2**21  # 8 MiB of float32

Report = Callable[[int, int, float], None]
"""``(sequences done, sequences in all, tokens per second)``"""


@dataclass(frozen=True, slots=True)
class DataSetting:
    """Amount of data, and how it is sampled.

    Attributes:
        sequences: prompts for training.
        held_out: prompts for evaluation, from texts that training never sees.
        prompt_tokens: maximum length of a prompt.
        output_tokens: tokens sampled after each prompt.
        batch: sequences decoded together; one shard, the unit of resumption.
        temperature: of sampling, and of the verifier's stored distribution.
        chat: share of the prompts in the chat template.
        factors: adapter scales of the switch, assigned to sequences in turn.
        seed: of prompts and sampling.
    """

    sequences: int = 4096
    held_out: int = 128
    prompt_tokens: int = 64
    output_tokens: int = 256
    batch: int = 128
    temperature: float = 0.7
    chat: float = 0.5
    factors: tuple[float, ...] = (0.0,)
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"sequences": 1, "held_out": 1, "prompt_tokens": 8, "output_tokens": 16, "batch": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed: {low} or more")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; allowed: above 0, because data is sampled")
        if not 0 <= self.chat <= 1:
            raise UsageError(f"the share of chat prompts is {self.chat}; allowed: 0 to 1")


class SelfGenerated:
    """The data folder of one training: finds complete shards and generates the missing ones.

    Args:
        folder: of the shards; created with the first.
        setting: amount and sampling.
        identity: the verifier's.
        texts: names of the sources, for the record.
        switch: hash of the adapter, for the record.
        fingerprint: `Prompts.fingerprint` of each mode's prompts; None skips the check that the texts are the same.

    Raises:
        UsageError: the folder holds data of another verifier, other texts or other settings, or other files; or it
            cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        setting: DataSetting,
        identity: str,
        texts: Sequence[str],
        switch: str | None = None,
        fingerprint: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.setting = setting
        record = {"verifier": identity, "texts": list(texts), "switch": switch, **asdict(setting)}
        record[FINGERPRINT] = fingerprint
        # A larger number of sequences extends the same data.
        self.record = json.loads(json.dumps({k: v for k, v in record.items() if k != "sequences"}))
        check_folder(folder)
        self._about = folder / "data.json"
        if self._about.exists():
            found = _read_record(self._about)
            differing = [name for name in self.record if found.get(name) != self.record[name]]
            if FINGERPRINT in differing and None in (found.get(FINGERPRINT), fingerprint):
                differing.remove(FINGERPRINT)  # older data has none, or the caller gives none
            if differing == [FINGERPRINT]:
                raise UsageError(
                    f"{folder} holds training data of the same sources, but their texts, the tokenizer or the chat "
                    "template have changed. Restore them, give another --data, or delete the folder"
                )
            if differing:
                raise UsageError(
                    f"{folder} holds training data made with other settings ({', '.join(differing)}); give another "
                    "--data, or delete the folder"
                )
        elif folder.exists() and any(file.name != PARTIAL for file in folder.iterdir()):
            raise UsageError(f"{folder} holds files that are not training data; give an empty or new folder")

    @property
    def training_files(self) -> list[Path]:
        """The shards to train on, complete or missing."""
        count = -(-self.setting.sequences // self.setting.batch)
        return [self.folder / f"shard-{number:05d}.safetensors" for number in range(count)]

    @property
    def held_out_files(self) -> list[Path]:
        """The shards to evaluate on, complete or missing."""
        count = -(-self.setting.held_out // self.setting.batch)
        return [self.folder / f"{_EVALUATION}-{number:05d}.safetensors" for number in range(count)]

    @property
    def missing(self) -> list[Path]:
        """Shards that do not exist (or have too few sequences), the held-out ones first."""
        return [file for file in [*self.held_out_files, *self.training_files] if not self._made(file)]

    def begin(self) -> None:
        """Create the folder with the record of its data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._about.exists():
            write_whole(self._about, json.dumps(self.record, indent=1) + "\n")

    def check_guessable(self) -> None:
        """Validate that the (complete) data has tokens to predict.

        Raises:
            UsageError: the model ended every training text, or every held-out one, with its first token.
        """
        for what, files in (("training", self.training_files), ("held-out", self.held_out_files)):
            if not any(bool((_lengths_in(file)[: self._size(file)] > 1).any()) for file in files):
                raise UsageError(
                    f"the model ended each {what} text with its first token, so there is nothing to predict. Change "
                    f"--texts, --chat or --temperature so that it continues, and delete {self.folder}"
                )

    @property
    def missing_sequences(self) -> int:
        """Number of sequences in `missing`."""
        return sum(self._size(file) for file in self.missing)

    @property
    def has_more(self) -> bool:
        """Whether the folder holds more sequences than requested, those of a larger run."""
        wanted = self.training_files
        there = sorted(self.folder.glob("shard-*.safetensors"))
        return any(file not in wanted or _sequences(file) > self._size(file) for file in there)

    def _made(self, file: Path) -> bool:
        return file.exists() and _sequences(file) >= self._size(file)

    def generate(
        self,
        verifier: Verifier,
        prompts: Sequence[Prompts],
        end_tokens: frozenset[int],
        report: Report | None = None,
        *,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Generate the missing shards.

        Args:
            verifier: with as many slots as a batch, and capacity for prompt and output.
            prompts: one source of prompts for each adapter scale.
            end_tokens: tokens that end a sequence.
            report: called after every shard.
            part: ``(index, count)`` of this process among those that share the work.
        """
        self.begin()
        index, count = part
        mine = [*self.held_out_files, *self.training_files][index::count]
        missing = [file for file in mine if not self._made(file)]
        total = sum(self._size(file) for file in missing)
        done = 0
        for file in missing:
            begin = time.perf_counter()
            shard = self._make(file, verifier, prompts, end_tokens)
            shard.write(file)
            done += len(shard.tokens)
            if report is not None:
                report(done, total, shard.tokens.numel() / (time.perf_counter() - begin))

    def shards(self, files: Sequence[Path]) -> Iterator[Shard]:
        """Read shards one at a time."""
        for file in files:
            yield self.read(file)

    def read(self, file: Path) -> Shard:
        """Read a shard without sequences beyond the requested number: the folder may hold more of the same data."""
        shard, size = Shard.read(file), self._size(file)
        if len(shard.tokens) == size:
            return shard
        return shard.take(slice(size))

    def _size(self, file: Path) -> int:
        held_out = file.name.startswith(_EVALUATION)
        wanted = self.setting.held_out if held_out else self.setting.sequences
        number = int(file.stem.rpartition("-")[2])
        return min(self.setting.batch, wanted - number * self.setting.batch)

    def _make(
        self, file: Path, verifier: Verifier, prompts: Sequence[Prompts], end_tokens: frozenset[int]
    ) -> Shard:
        setting = self.setting
        number = int(file.stem.rpartition("-")[2])
        held_out = file.name.startswith(_EVALUATION)
        first = number * setting.batch
        size = self._size(file)
        turns = [(first + i) % len(setting.factors) for i in range(size)]
        chosen = [prompts[turn].prompt(first + i, held_out=held_out) for i, turn in enumerate(turns)]
        factors = [setting.factors[turn] for turn in turns]
        generator = torch.Generator().manual_seed(_seed(setting.seed, number, held_out=held_out))
        return sample(verifier, chosen, factors, setting, end_tokens, generator)


def _seed(seed: int, number: int, *, held_out: bool) -> int:
    """Seed of a shard: the first 63 bits of a SHA-256, the same in every process and version of Python."""
    digest = hashlib.sha256(f"{seed} {number} {'evaluation' if held_out else 'train'}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _sequences(file: Path) -> int:
    """Number of sequences in a shard; 0 if it is damaged, so that it is generated again."""
    try:
        return len(_lengths_in(file))
    except SafetensorError:
        return 0


def _lengths_in(file: Path) -> Tensor:
    """The lengths of a shard's sequences."""
    with safe_open(file, "pt") as shard:
        found: Tensor = shard.get_tensor("lengths")
        return found


def _read_record(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{file} is damaged ({error}); delete its folder, or give another --data") from error


@torch.inference_mode()
def sample(
    verifier: Verifier,
    prompts: Sequence[Sequence[int]],
    factors: Sequence[float],
    setting: DataSetting,
    end_tokens: frozenset[int],
    generator: torch.Generator,
) -> Shard:
    """Decode ``setting.output_tokens`` tokens after each prompt, all together; keep states and distributions.

    Args:
        verifier: with at least as many slots as prompts.
        prompts: token ids of each.
        factors: adapter scale of each.
        setting: length and temperature.
        end_tokens: tokens that end a sequence.
        generator: on the CPU, for the draws.
    """
    rows = range(len(prompts))
    logits, hidden = [], []
    for slot in rows:
        verifier.clear(slot)
        *_, last = verifier.prefill(slot, prompts[slot], factors[slot])
        assert last is not None
        logits.append(last.logits)
        hidden.append(last.hidden)
    tokens: list[Tensor] = []
    states: list[Tensor] = []
    teachers: list[tuple[Tensor, Tensor]] = []
    for step in range(setting.output_tokens):
        drawn, best, chances = _draw(logits, setting.temperature, generator)
        tokens.append(drawn)
        states.append(torch.cat(hidden).bfloat16().cpu())
        teachers.append((best, chances))
        if step + 1 == setting.output_tokens:
            break
        outputs = verifier.step([StepInput(i, [t], factor=factors[i]) for i, t in enumerate(drawn.tolist())])
        for slot in rows:
            verifier.keep(slot, [0])
        logits = [output.logits for output in outputs]
        hidden = [output.hidden for output in outputs]
    for slot in rows:
        verifier.clear(slot)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.stack(tokens, dim=1)
    return Shard(
        torch.nn.utils.rnn.pad_sequence([torch.tensor(list(prompt)) for prompt in prompts], batch_first=True),
        lengths,
        ids,
        _lengths(ids, end_tokens),
        torch.stack(states, dim=1),
        torch.stack([best for best, _ in teachers], dim=1),
        torch.stack([probs for _, probs in teachers], dim=1),
        torch.tensor(factors, dtype=torch.float32),
    )


def _draw(
    logits: Sequence[Tensor], temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row by inverse CDF, the same on every device; also the most likely tokens.

    ``logits`` are ``[1, vocab]`` each. Returns tokens ``[rows]`` and the most likely ones ``[rows, 8]``, int64, with
    their probabilities ``[rows, 8]``, float16; all on the CPU. The rows are processed a few at a time: with a large
    vocabulary, the allocator does not keep the memory of a whole batch, and on a CPU allocating it at every step took
    longer than the model.
    """
    uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float32).to(logits[0].device)
    rows = max(1, _ROW_NUMBERS // logits[0].shape[-1])
    found = []
    for begin in range(0, len(logits), rows):
        probs = torch.softmax(torch.cat(list(logits[begin : begin + rows])).float() / temperature, dim=-1)
        cdf = probs.cumsum(dim=-1)
        if not bool(cdf[:, -1].isfinite().all()):
            raise ResourceError(
                f"the model's logits divided by the temperature {temperature} are not finite: the weights are damaged "
                "or the temperature is too low. Fetch the model again, or give a higher --temperature"
            )
        drawn = torch.searchsorted(cdf, uniform[begin : begin + rows] * cdf[:, -1:], right=True)[:, 0]
        best = probs.topk(min(TEACHER_TOKENS, probs.shape[-1]), dim=-1)
        found.append(
            (drawn.clamp(max=probs.shape[-1] - 1).cpu(), best.indices.cpu(), best.values.half().cpu())
        )
    tokens, indices, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    return tokens, indices, values


def _lengths(tokens: Tensor, end_tokens: frozenset[int]) -> Tensor:
    """Per row of ``tokens [rows, outputs]``, the number of tokens up to and including the first end token."""
    ends = torch.isin(tokens, torch.tensor(sorted(end_tokens), dtype=torch.long))
    first = torch.where(ends.any(dim=1), ends.int().argmax(dim=1) + 1, tokens.shape[1])
    return first.long()


def estimate(verifier: Verifier, prompts: Prompts, setting: DataSetting, sequences: int) -> dict[str, Any]:
    """Seconds and bytes that ``sequences`` need, measured on a few steps of one batch."""
    size = min(setting.batch, setting.sequences)
    short = DataSetting(batch=size, output_tokens=16, prompt_tokens=setting.prompt_tokens)
    chosen = [prompts.prompt(i) for i in range(size)]
    begin = time.perf_counter()
    sample(verifier, chosen, [0.0] * size, short, frozenset(), torch.Generator().manual_seed(0))
    per_token = (time.perf_counter() - begin) / (size * short.output_tokens)
    tokens = sequences * setting.output_tokens
    row = 2 * verifier.spec.hidden_size + TEACHER_TOKENS * 6 + 4
    return {"tokens": tokens, "seconds": tokens * per_token, "bytes": tokens * row}
