"""From a verifier to a drafter: generated data, draft vocabulary, training, and the output directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from transformers import PreTrainedModel

from justright.adapter.apply import AppliedSwitch
from justright.architectures.spec import ModelSpec
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.sources import check_tokenizer_files, resolve_adapter
from justright.checkpoint.tokenizer import load_tokenizer
from justright.engine.checks import check_model, end_tokens, read_switch
from justright.engine.model_runner import Verifier
from justright.errors import UsageError
from justright.files import check_new
from justright.provenance import collect, file_sha256
from justright.speculative.attention_network import AttentionConfig, AttentionModel
from justright.speculative.lstm_network import LstmConfig, LstmModel
from justright.training.attention_trainer import AttentionTraining
from justright.training.frozen_model import embedded, load_frozen
from justright.training.held_out import Accuracy, measure_attention_trees, measure_trees
from justright.training.prompts import Prompts
from justright.training.self_generated import DataSetting, SelfGenerated, estimate
from justright.training.spec_token import ATTENTION_NAME
from justright.training.trainer import Progress, Training, TrainSetting

_CURVE = "curve.json"
_REDUCE_ABOVE = 16384
_REDUCED = 8192


@dataclass(frozen=True, slots=True)
class DrafterShape:
    """The drafter's architecture; the verifier decides what is None.

    Attributes:
        width: size of the state; by default the verifier's hidden size, at most 2,048.
        steps: tokens ahead.
        cell: "lstm", "rnn", or "attention", the baseline, which uses no other field but ``draft_vocab``.
        embedding: "shared" or "own".
        head: "shared" or "own".
        draft_vocab: size of the draft vocabulary, 0 for all tokens; by default 8,192 of a vocabulary above 16,384.
        spec: train [SPEC] too.
    """

    width: int | None = None
    steps: int = 5
    cell: str = "lstm"
    embedding: str = "shared"
    head: str = "shared"
    draft_vocab: int | None = None
    spec: bool = True

    def __post_init__(self) -> None:
        if self.cell not in ("lstm", "rnn", "attention"):
            raise UsageError(f"the drafter's cell is {self.cell!r}; allowed: lstm, rnn, attention")

    def config(self, identity: str, model: ModelSpec) -> LstmConfig | AttentionConfig:
        """The drafter's config for a verifier of this identity and spec."""
        reduced = _REDUCED if model.vocab_size > _REDUCE_ABOVE else 0
        if self.cell == "attention":
            if (self.width, self.steps, self.embedding, self.head) != (None, 5, "shared", "shared"):
                raise UsageError(
                    "an attention drafter uses the model's width, embedding and head, and learns one token ahead; omit "
                    "width, steps, embedding and head"
                )
            draft_vocab = reduced if self.draft_vocab is None else self.draft_vocab
            return AttentionConfig(identity, model.hidden_size, model.vocab_size, draft_vocab)
        return LstmConfig(
            identity,
            model.hidden_size,
            model.vocab_size,
            min(model.hidden_size, 2048) if self.width is None else self.width,
            self.steps,
            self.cell,  # type: ignore[arg-type]  # LstmConfig validates it
            self.embedding,  # type: ignore[arg-type]
            self.head,  # type: ignore[arg-type]
            reduced if self.draft_vocab is None else self.draft_vocab,
            self.spec,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One training.

    Attributes:
        model: the verifier's checkpoint directory.
        out: the directory to create.
        texts: sources of prompts.
        shape: the drafter's architecture.
        data: amount of data, and how it is sampled.
        training: length and learning rates.
        switch: the adapter of the fast mode; half of the data is then generated in fast mode.
        data_folder: folder that keeps the data for other drafters of this model; None: a folder beside the output,
            deleted at the end unless a larger run left more data there.
        device: to train on; None: the best available.
    """

    model: Path
    out: Path
    texts: Sequence[str]
    shape: DrafterShape = field(default_factory=DrafterShape)
    data: DataSetting = field(default_factory=DataSetting)
    training: TrainSetting = field(default_factory=TrainSetting)
    switch: str | None = None
    data_folder: Path | None = None
    device: str | None = None

    @property
    def partial(self) -> Path:
        """Folder of the unfinished work."""
        return self.out.with_name(self.out.name + ".partial")


DetailedProgress = Callable[[str, int, int, str], None]
"""``(stage, units done, units in all, rate or loss as text)``"""


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a training.

    Attributes:
        out: the drafter's directory.
        config: of the drafter.
        accuracy: on held-out prompts.
        coverage: share of the held-out tokens that are in the draft vocabulary.
        size_bytes: of the directory.
        left: folder with data of a larger run, which is kept; None if there is none.
    """

    out: Path
    config: LstmConfig | AttentionConfig
    accuracy: Accuracy
    coverage: float
    size_bytes: int
    left: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        left = None if self.left is None else str(self.left)
        return asdict(self) | {"out": str(self.out), "left": left}


class TrainingJob:
    """A validated job: all cheap work is done, nothing is written yet.

    Raises:
        JustrightError: a damaged or unsupported model, texts that are too short, an adapter for another model, an
            output that exists, and others.
    """

    def __init__(self, job: Job) -> None:
        check_new(job.out)
        self.job = job
        spec = check_model(job.model)
        self.max_tokens = job.data.prompt_tokens + job.data.output_tokens
        if self.max_tokens > spec.context:
            raise UsageError(
                f"{job.data.prompt_tokens} prompt tokens and {job.data.output_tokens} output tokens do not fit the "
                f"model's context of {spec.context}; give fewer"
            )
        check_tokenizer_files(job.model)
        self.tokenizer = load_tokenizer(job.model)
        self.identity = weights_identity(job.model)
        trains_spec = job.shape.spec and job.training.spec_steps > 0
        self.config = replace(job.shape, spec=trains_spec).config(self.identity, spec)
        self.switch = None if job.switch is None else _hash(resolve_adapter(job.switch))
        self.adapter = None if job.switch is None else read_switch(job.switch, job.model)
        factors = (0.0,) if self.adapter is None else (0.0, 1.0)
        self.setting = DataSetting(**{**asdict(job.data), "factors": factors})
        self.prompts = [self._prompts(factor) for factor in factors]
        self.data = SelfGenerated(
            job.data_folder or job.partial / "data",
            self.setting,
            self.identity,
            list(job.texts),
            self.switch,
            [one.fingerprint for one in self.prompts],
        )
        self.accelerator = Accelerator(
            cpu=job.device == "cpu",
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(days=1)),  # processes wait for each other's data
                # The first phase does not use [SPEC]'s vector.
                DistributedDataParallelKwargs(find_unused_parameters=True),
            ],
        )

    def _prompts(self, factor: float) -> Prompts:
        """The prompts of one mode; fast mode has its own chat template."""
        template = self.adapter.template if self.adapter is not None and factor else None
        special = {} if self.adapter is None else self.adapter.special_tokens
        return Prompts(
            self.tokenizer,
            self.job.texts,
            length=self.job.data.prompt_tokens,
            chat=self.job.data.chat,
            seed=self.job.data.seed,
            template={} if template is None else {"chat_template": template, **special},
        )

    def estimate(self) -> dict[str, Any]:
        """Seconds and bytes of the data and of the training, measured on a few steps."""
        verifier = self._verifier()
        data = estimate(verifier, self.prompts[0], self.setting, self.data.missing_sequences)
        config = self.config
        steps = round(self.job.training.epochs * self.setting.sequences / self.job.training.rows)
        # A prefix costs three forward passes: the backward pass costs two.
        if isinstance(config, AttentionConfig):
            numbers = config.hidden_size * (12 * config.hidden_size + config.head_size)
        else:
            gates = 4 if config.cell == "lstm" else 1
            step = config.width * (gates * (config.width + config.hidden_size) + config.head_size)
            numbers = config.steps * step
        rate = _flops(self.accelerator.device)
        prefixes = self.job.training.epochs * self.setting.sequences * self.setting.output_tokens
        spec_steps = self.job.training.spec_steps if getattr(config, "spec", False) else 0
        rows = self.setting.prompt_tokens + self.setting.output_tokens * (
            1 + 2 / self.job.training.spec_every
        )
        size = sum(p.numel() for p in verifier.model.parameters())
        train_s = 6 * numbers * prefixes / rate
        spec_s = 2 * size * rows * spec_steps * self.job.training.spec_rows / rate
        times = {"train_seconds": train_s, "spec_seconds": spec_s}
        return {"data": data, "steps": steps, "spec_steps": spec_steps, **times}

    def run(self, progress: DetailedProgress = lambda *_: None) -> Trained:
        """Train; the same job resumes an interrupted run."""
        job, data = self.job, self.data
        if data.missing:
            with self.accelerator.main_process_first():
                data.begin()
            self._generate(data, progress)
        self.accelerator.wait_for_everyone()
        data.check_guessable()
        verifier = load_frozen(job.model, self.accelerator.device, attn_implementation=ATTENTION_NAME)
        model, coverage = self._model(verifier, data)
        kind = AttentionTraining if isinstance(model, AttentionModel) else Training
        training = kind(
            model,  # type: ignore[arg-type]  # both models have what the trainer uses
            data,
            job.training,
            job.partial / "training",
            verifier=verifier if model.spec is not None else None,
            switch=None if self.adapter is None else AppliedSwitch(verifier, self.adapter),
            accelerator=self.accelerator,
        )
        accuracy = training.run(lambda now: progress(*_described(now)))
        return self._finish(model, training, accuracy, coverage)

    def _generate(self, data: SelfGenerated, progress: DetailedProgress) -> None:
        verifier = self._verifier()
        progress("data", 0, 0, "")
        ends = end_tokens(self.job.model, self.tokenizer)
        if self.adapter is not None:
            ends |= self.adapter.end_tokens
        part = (self.accelerator.process_index, self.accelerator.num_processes)
        data.generate(
            verifier,
            self.prompts,
            ends,
            part=part,
            report=lambda done, total, rate: progress("data", done, total, f"{rate:,.0f} tokens/s"),
        )

    def _verifier(self) -> Verifier:
        setting = self.setting
        model = load_frozen(self.job.model, self.accelerator.device)
        slots = min(setting.batch, max(setting.sequences, setting.held_out))
        verifier = Verifier(model, slots=slots, cache="trimmed", max_tokens=self.max_tokens)
        if self.adapter is not None:
            verifier.switch = AppliedSwitch(model, self.adapter)
        return verifier

    def _model(
        self, verifier: PreTrainedModel, data: SelfGenerated
    ) -> tuple[LstmModel | AttentionModel, float]:
        """The untrained drafter, and the share of the held-out tokens that are in its vocabulary."""
        embedding = verifier.get_input_embeddings().weight.detach()
        head = verifier.get_output_embeddings().weight.detach().to(embedding.dtype)
        config = self.config
        counts = _counts(data, data.training_files, config.vocab_size)
        vocab = counts.topk(config.head_size).indices.sort().values
        seen = _counts(data, data.held_out_files, config.vocab_size)
        torch.manual_seed(self.job.training.seed)
        coverage = float(seen[vocab].sum() / seen.sum().clamp_min(1))
        if isinstance(config, AttentionConfig):
            return AttentionModel(config, embedding, head, vocab), coverage
        model = LstmModel(config, embedding, head, vocab)
        if model.spec is not None:
            with torch.no_grad():
                model.spec.copy_(embedded(verifier, vocab).mean(0))
        return model, coverage

    def _finish(
        self, model: LstmModel | AttentionModel, training: Training, accuracy: Accuracy, coverage: float
    ) -> Trained:
        job = self.job
        made = job.partial / "drafter"
        left: Path | None = None
        if self.accelerator.is_main_process:
            shutil.rmtree(made, ignore_errors=True)
            extra = {
                "accuracy": asdict(accuracy), "coverage": coverage, "data": asdict(self.setting),
                "training": asdict(job.training), "texts": list(job.texts), "trees": _trees(model.eval(), training),
            }  # fmt: skip
            model.save(made, extra)
            record = collect(inputs={"verifier": job.model}, seed=job.training.seed, hash_inputs=False)
            record.write(made / "provenance.json")
            (made / _CURVE).write_text(json.dumps(training.state.curve, indent=1) + "\n", encoding="utf-8")
            made.replace(job.out)
            if job.data_folder is None and self.data.has_more:
                left = self.data.folder
            shutil.rmtree(job.partial / "training" if left else job.partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        size = sum(file.stat().st_size for file in job.out.iterdir())
        return Trained(job.out, model.config, accuracy, coverage, size, left)


def _hash(adapter: Path) -> str:
    """Hash of the adapter's files that determine its behaviour."""
    files = sorted(file for file in adapter.iterdir() if file.suffix in (".safetensors", ".jinja", ".json"))
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()[:16]


def _trees(model: LstmModel | AttentionModel, training: Training) -> dict[str, Any]:
    """Tables of accepted trees, from plain states and from [SPEC]'s."""
    if isinstance(model, AttentionModel):
        shards = training.data.shards(training.data.held_out_files)
        return {"plain": measure_attention_trees(model, shards, training.device).to_dict()}
    states = {"plain": None} | ({} if model.spec is None else {"spec": training.verifier})
    found = {}
    for name, verifier in states.items():
        shards = training.data.shards(training.data.held_out_files)
        found[name] = measure_trees(model, shards, verifier, training.device, training.switch).to_dict()
    return found


def _counts(data: SelfGenerated, files: Sequence[Path], vocab_size: int) -> torch.Tensor:
    """How often each token was sampled, ``[vocab]``; the smaller id wins ties."""
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    for shard in data.shards(files):
        before_end = torch.arange(shard.tokens.shape[1])[None] < shard.lengths[:, None]
        counts += torch.bincount(shard.tokens[before_end], minlength=vocab_size)
    return counts - torch.arange(vocab_size) * 1e-9


def _described(now: Progress) -> tuple[str, int, int, str]:
    stage = {"drafter": "training", "spec": "training with [SPEC]"}[now.phase]
    detail = f"loss {now.loss:.2f}, {now.prefixes_per_s:,.0f} prefixes/s"
    if now.accuracy is not None:
        length = now.accuracy.spec_length if now.phase == "spec" else now.accuracy.length
        detail += f", acceptance length {length or 0:.2f}"
    return stage, now.step, now.steps, detail


def _flops(device: torch.device) -> float:
    """Measured throughput of large matrix products, in floating-point operations per second."""
    import time

    from justright.kernels.cpu import has_bfloat16

    dtype = torch.bfloat16 if device.type != "cpu" or has_bfloat16() else torch.float32
    a = torch.randn(1024, 1024, device=device).to(dtype)
    a @ a
    begin = time.perf_counter()
    for _ in range(8):
        b = a @ a
    float(b[0, 0])
    return 8 * 2 * 1024**3 / (time.perf_counter() - begin)
