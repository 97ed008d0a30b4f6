"""The training loop of a drafter: steps on stored states, then steps with [SPEC]; resumable at any point.

The state after a step depends only on the setting, the data and the step: batches are drawn by step number, and a
checkpoint holds the weights, the optimizers' moments and the curve so far.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from justright.adapter.apply import AppliedSwitch
from justright.errors import CheckpointError, ResourceError, UsageError
from justright.files import recover_folder, save_tensors, swap_folder, write_whole
from justright.kernels.cpu import has_bfloat16
from justright.readable import differences
from justright.speculative.lstm_network import LstmModel
from justright.training.batches import Batches
from justright.training.frozen_model import embedded
from justright.training.held_out import Accuracy, measure
from justright.training.loss import DraftLoss, Prefixes, prefixes
from justright.training.self_generated import FINGERPRINT, SelfGenerated
from justright.training.shard import Shard
from justright.training.spec_token import states_after


@dataclass(frozen=True, slots=True)
class TrainSetting:
    """How a drafter is trained.

    Attributes:
        epochs: passes over the data, on the verifier's plain states.
        rows: sequences per step.
        rate: peak learning rate of Muon on matrices; AdamW on the rest uses a fifth of it.
        decay: share of the steps, at the end, over which the rate falls to zero.
        spec_steps: further steps with [SPEC]; 0 for none.
        spec_rows: sequences per step with [SPEC].
        spec_every: distance in tokens between two [SPEC].
        spec_rate: peak learning rate of the steps with [SPEC].
        vector_rate: peak learning rate of [SPEC]'s embedding, in units of a token embedding's root mean square.
        evaluate_every: steps between evaluations on held-out prompts.
        patience: number of evaluations without improvement that ends a phase; 0 for no limit.
        seed: of weights and batches.
    """

    epochs: float = 2.5
    rows: int = 8
    rate: float = 0.012
    decay: float = 0.5
    spec_steps: int = 700
    spec_rows: int = 4
    spec_every: int = 2
    spec_rate: float = 0.004
    vector_rate: float = 0.2
    evaluate_every: int = 100
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        rates = ("rate", "spec_rate", "vector_rate")
        for name in ("epochs", "rows", *rates, "spec_rows", "spec_every", "evaluate_every"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed: above 0")
        for name in ("spec_steps", "patience"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed: 0 or more")
        if not 0 < self.decay <= 1:
            raise UsageError(f"decay is {self.decay}; allowed: above 0, up to 1")


@dataclass(slots=True)
class Progress:
    """Progress of a training, as reported.

    Attributes:
        phase: "drafter" or "spec".
        step: steps done in this phase.
        steps: total steps of this phase.
        loss: of the last step.
        prefixes_per_s: throughput of this run's last step.
        accuracy: of the evaluation, if this report follows one.
    """

    phase: str
    step: int
    steps: int
    loss: float = math.nan
    prefixes_per_s: float = 0.0
    accuracy: Accuracy | None = None


Report = Callable[[Progress], None]


@dataclass(slots=True)
class _State:
    """The part of a checkpoint that is not tensors."""

    phase: str = "drafter"
    step: int = 0
    seconds: float = 0.0
    evaluated: int = 0
    loss: float = math.nan
    best: float = 0.0
    worse: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Training:
    """One drafter's training in one folder; resumes from the checkpoint there.

    Args:
        model: newly initialised; a checkpoint replaces its weights.
        data: the verifier's data, complete.
        setting: length and learning rates.
        folder: of the checkpoint.
        verifier: frozen, for [SPEC]; None without [SPEC].
        switch: the verifier's, if the data is in both modes.
        accelerator: of accelerate; several processes share the rows of a step.

    Raises:
        UsageError: the folder holds the checkpoint of another training.
        CheckpointError: the checkpoint in the folder is damaged.
    """

    def __init__(
        self,
        model: LstmModel,
        data: SelfGenerated,
        setting: TrainSetting,
        folder: Path,
        *,
        verifier: PreTrainedModel | None = None,
        switch: AppliedSwitch | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or Accelerator()
        self.device = self.accelerator.device
        self.model = model.to(self.device)
        self.data = data
        self.setting = setting
        self.folder = folder
        self.verifier = verifier
        self.switch = switch
        self.state = _State()
        self._best: dict[str, Tensor] = {}
        self._in_step = False
        of = {"data": data.record | {"sequences": data.setting.sequences}}
        of["processes"] = {"count": self.accelerator.num_processes}
        record = {"model": asdict(model.config), "setting": asdict(setting), **of}
        self._record = json.loads(json.dumps(record))
        self._loss = DraftLoss(model.vocab, model.config.vocab_size)
        self._batches = Batches(data, setting.seed)
        self._token_size = (
            0.0 if verifier is None else float(embedded(verifier, model.vocab).square().mean().sqrt())
        )
        self._optimizers = self._make_optimizers()
        self._wrapped: Any = self.accelerator.prepare(self.model)
        recover_folder(folder, "state.json")
        if (folder / "state.json").exists():
            try:
                self._load()
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                raise CheckpointError(
                    f"the training's checkpoint in {folder} is damaged ({type(error).__name__}: {error}); delete the "
                    "folder to start again"
                ) from error

    @property
    def phases(self) -> dict[str, int]:
        """Number of steps of each phase."""
        per_epoch = self.data.setting.sequences / (self.setting.rows * self.accelerator.num_processes)
        found = {"drafter": max(1, round(self.setting.epochs * per_epoch))}
        if self.verifier is not None and self.model.spec is not None and self.setting.spec_steps:
            found["spec"] = self.setting.spec_steps
        return found

    def run(self, report: Report = lambda _: None, *, save_every_s: float = 60.0) -> Accuracy:
        """Train to the end; save every ``save_every_s`` seconds and on interruption; evaluate the final weights.

        Raises:
            ResourceError: the loss is not finite.
        """
        saved = time.monotonic()
        rate = 0.0
        try:
            while self.state.phase != "done":
                phase, steps = self.state.phase, self.phases[self.state.phase]
                now = Progress(phase, self.state.step, steps, self.state.loss, rate)
                if self._evaluation_is_due(steps):
                    now.accuracy = self._evaluated(steps)
                else:
                    begin = time.perf_counter()
                    now.loss, count = self.take_step()
                    took = time.perf_counter() - begin
                    self.state.seconds += took
                    now.step, now.prefixes_per_s = self.state.step, (rate := count / took)
                report(now)
                if now.accuracy is not None or time.monotonic() - saved > save_every_s:
                    self.save()
                    saved = time.monotonic()
        finally:
            if not self._in_step:  # an interrupted step is discarded: the last checkpoint stays
                self.save()
        return self.evaluate()  # if a phase ended early, the last evaluation was of other weights

    def _evaluation_is_due(self, steps: int) -> bool:
        step = self.state.step
        return step > self.state.evaluated and (step >= steps or step % self.setting.evaluate_every == 0)

    def _evaluated(self, steps: int) -> Accuracy:
        """Evaluate, record the result, and start the next phase if this one is complete."""
        accuracy, state = self.evaluate(), self.state
        state.evaluated = state.step
        point = {"phase": state.phase, "step": state.step, "loss": state.loss, **asdict(accuracy)}
        state.curve.append(point)
        stopped = self._patience_is_spent(accuracy)
        if stopped or state.step >= steps:
            if stopped and self._best:
                self._restore(self._best)
            names = [*self.phases, "done"]
            state.phase = names[names.index(state.phase) + 1]
            state.step, state.evaluated, state.best, state.worse = 0, 0, 0.0, 0
            self._best = {}
        return accuracy

    def take_step(self) -> tuple[float, int]:
        """Take one optimizer step of the current phase; returns its loss and its number of prefixes."""
        phase, step = self.state.phase, self.state.step
        rate = self.setting.rate if phase == "drafter" else self.setting.spec_rate
        steps = self.phases[phase]
        share = min(1.0, (step + 1) / 20, (steps - step) / (self.setting.decay * steps))
        rates = (rate, 0.2 * rate, self.setting.vector_rate * self._token_size)
        for optimizer, peak in zip(self._optimizers, rates, strict=False):  # two without [SPEC]
            for group in optimizer.param_groups:
                group["lr"] = share * peak
        loss, count = self._plain_loss(step) if phase == "drafter" else self._spec_loss(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ResourceError(
                f"the loss of step {step} ({phase}) is {value}: the rate {rate} is too high, or the data is damaged. "
                f"Delete {self.folder} and start again with a lower --rate"
            )
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._in_step = True
        for optimizer in self._optimizers:
            optimizer.step()
        self.state.step = step + 1
        if count:  # 0: every sequence ended with its first token, so there was nothing to predict
            self.state.loss = value
        self._in_step = False
        return value, count

    def evaluate(self) -> Accuracy:
        """Evaluate on the held-out prompts."""
        self.model.eval()
        spec = self.verifier if self.state.phase in ("spec", "done") else None
        found = measure(
            self.model, self.data.shards(self.data.held_out_files), spec, self.device, self.switch
        )
        self.model.train()
        return found

    def _plain_loss(self, step: int) -> tuple[Tensor, int]:
        batch = self._prefixes(self._batch(step, self.setting.rows))
        return self._draft_loss(batch, batch.hidden.to(self.device)), len(batch.tokens)

    def _spec_loss(self, step: int) -> tuple[Tensor, int]:
        """Both losses of [SPEC], and the drafter's loss on plain states, so that it keeps working from either."""
        assert self.verifier is not None
        assert self.model.spec is not None
        shard = self._batch(step, self.setting.spec_rows)
        batch = self._prefixes(shard)
        every = self.setting.spec_every
        batch = batch.take(torch.arange(len(batch.tokens))[step % every :: every])
        states = states_after(self.verifier, self.model.spec, shard, batch, self.device, self.switch)
        loss = self._draft_loss(batch, torch.cat([states, batch.hidden.to(self.device)]), twice=True)
        # The verifier's own head on [SPEC] predicts the second token after the prefix.
        head = self.verifier.get_output_embeddings().weight[self.model.vocab]
        logits = states.to(head.dtype) @ head.T
        own = self._loss.step(
            logits, *(t[:, 0].to(self.device) for t in (batch.teacher_ids, batch.teacher_probs, batch.valid))
        )
        return loss + own, len(batch.tokens)

    def _draft_loss(self, batch: Prefixes, hidden: Tensor, *, twice: bool = False) -> Tensor:
        """Mean over the draft steps; with ``twice``, ``hidden`` holds the rows of the batch two times."""
        tokens, ids, probs, valid = (
            torch.cat([t, t]).to(self.device) if twice else t.to(self.device)
            for t in (batch.tokens, batch.teacher_ids, batch.teacher_probs, batch.valid)
        )
        half = self.device.type != "cpu" or has_bfloat16()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = self._wrapped(hidden, tokens)
        losses = [self._loss.step(one, ids[:, i], probs[:, i], valid[:, i]) for i, one in enumerate(logits)]
        return torch.stack(losses).mean()

    def _batch(self, step: int, size: int) -> Shard:
        """The ``size`` sequences of this process in a step."""
        place = step * self.accelerator.num_processes + self.accelerator.process_index
        return self._batches.take(place * size, size)

    def _prefixes(self, shard: Shard) -> Prefixes:
        return prefixes(shard, torch.arange(len(shard.tokens)), self.model.config.steps)

    def _patience_is_spent(self, accuracy: Accuracy) -> bool:
        """Record an evaluation; True after ``patience`` evaluations without improvement."""
        score = accuracy.spec_length if self.state.phase == "spec" else accuracy.length
        if score is None or score > self.state.best:
            self.state.best, self.state.worse = score or 0.0, 0
            self._best = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        else:
            self.state.worse += 1
        return 0 < self.setting.patience <= self.state.worse

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices (Jordan 2024), AdamW for the rest (embedding tables too) and for [SPEC]."""
        looked_up = {"embedding.weight"} if getattr(self.model.config, "embedding", "") == "own" else set()
        named = dict(self.model.named_parameters())
        matrices = [p for n, p in named.items() if p.ndim == 2 and n not in looked_up]
        spec = named.pop("spec", None)
        rest = [p for n, p in named.items() if p.ndim != 2 or n in looked_up]
        muon = torch.optim.Muon(
            matrices, lr=self.setting.rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
        others = [rest] if spec is None else [rest, [spec]]
        return [
            muon,
            *(torch.optim.AdamW(p, self.setting.rate, weight_decay=0.0, betas=(0.9, 0.95)) for p in others),
        ]

    def save(self) -> None:
        """Write the checkpoint, and replace the old one in a single step."""
        if not self.accelerator.is_main_process:
            return
        partial = self.folder.with_name(self.folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        save_tensors(weights, partial / "weights.safetensors")
        save_tensors(dict(self._moments()), partial / "optimizer.safetensors")
        if self._best:
            save_tensors(self._best, partial / "best.safetensors")
        state = {"of": self._record, **asdict(self.state)}
        write_whole(partial / "state.json", json.dumps(state) + "\n")
        swap_folder(self.folder)

    def _restore(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        names: dict[Any, str] = {p: name for name, p in self.model.named_parameters()}
        for optimizer in self._optimizers:
            for parameter, moments in optimizer.state.items():
                for key, value in moments.items():
                    if isinstance(value, Tensor):
                        yield f"{names[parameter]}/{key}", value

    def _load(self) -> None:
        state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        found = state.pop("of")
        # Older versions recorded no fingerprint.
        found.get("data", {}).setdefault(FINGERPRINT, self._record["data"][FINGERPRINT])
        if found != self._record:
            differing = differences(found, self._record)
            raise UsageError(
                f"{self.folder} holds another training's checkpoint (its {' and '.join(differing)} differ); give "
                "another output, or delete the folder to start again"
            )
        self.state = _State(**state)
        self._restore(load_file(self.folder / "weights.safetensors"))
        if (best := self.folder / "best.safetensors").exists():
            self._best = load_file(best)
        moments = load_file(self.folder / "optimizer.safetensors")
        for optimizer in self._optimizers:
            held = {p for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in self.model.named_parameters():
                keys = [k for k in moments if k.startswith(f"{name}/")] if parameter in held else []
                if keys:
                    optimizer.state[parameter] = {
                        k.rpartition("/")[2]: moments[k].to(self.device if moments[k].ndim else "cpu")
                        for k in keys
                    }
