"""Prune a checkpoint: check, calibrate, choose experts, prune weights, write. Every step can be resumed."""

from __future__ import annotations

import inspect
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from justright.architectures.uneven_experts import with_experts
from justright.calibration import texts
from justright.calibration.statistics import ALL, Collector, LayerStatistics
from justright.calibration.stream import check_runs
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.sources import resolve
from justright.checkpoint.writer import CheckpointWriter, Store
from justright.errors import CheckpointError, UnsupportedModelError, UsageError
from justright.files import check_job_folder, job_folder
from justright.model.decoder_layer import LayerFormat
from justright.progress import ProgressCallback
from justright.provenance import collect as collect_provenance
from justright.prune.criteria.base import without_calibration
from justright.prune.decide import choose, layer_sparsity
from justright.prune.evaluation import Evaluate, evaluate_result, evaluate_source, lacks_evaluation
from justright.prune.experts import KeptExperts
from justright.prune.outcome import HTML, JSON, Pruned, PrunedWriter, card
from justright.prune.passes import CalibrationRun, collect, prune_weights
from justright.prune.plan import FILE_NAME as PLAN
from justright.prune.plan import Plan
from justright.prune.preflight import (
    Sizes,
    check_length,
    check_pattern,
    check_room,
    check_weights,
    expert_counts,
    memory_bytes,
    sizes,
)
from justright.prune.report import draw, render
from justright.prune.settings import Settings


@dataclass(frozen=True, slots=True)
class PruneEstimate:
    """The expected cost and result of a run.

    Attributes:
        parameters: Parameters in the checkpoint.
        prunable: Parameters that may be pruned.
        experts_before: Routed experts per layer; 0 for a dense model.
        experts_after: Routed experts kept per layer; the mean if layers differ.
        second_stage_sparsity: Sparsity of the remaining weights in stage 2.
        passes: Passes over the calibration texts through all layers.
        size_bytes: Size of the output on disk.
        work_bytes: Disk space for hidden states and masks during the run.
        memory_bytes: Approximate peak memory, without Python and torch; see `preflight.memory_bytes`.
    """

    parameters: int
    prunable: int
    experts_before: int
    experts_after: float
    second_stage_sparsity: float
    passes: int
    size_bytes: int
    work_bytes: int
    memory_bytes: int


class Pruning:
    """A pruning run of one checkpoint. The constructor validates all input before any expensive work.

    Args:
        model: Checkpoint directory.
        settings: How to prune.
        plan: A plan to apply instead of making one. Without calibration texts in ``settings``, single weights
            are then pruned by magnitude.
        device: Device that runs the layers.
        dtype: Dtype in which the layers run.
        rows: Sequences per batch.
        statistics: Folder that keeps the statistics of the first pass, or already holds them.

    Raises:
        JustrightError: The settings are invalid, the checkpoint cannot be pruned, or the texts are too short.
    """

    def __init__(
        self,
        model: Path,
        settings: Settings,
        *,
        plan: Plan | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        rows: int = 4,
        statistics: Path | None = None,
    ) -> None:
        self.model, self.settings, self.given, self.statistics = model, settings, plan, statistics
        self.device, self.dtype, self.rows = device, dtype, rows
        self.checkpoint = Checkpoint.open(model)
        self.layers = LayerFormat(self.checkpoint)
        self.spec = self.layers.spec
        if plan is None:
            self.counts = expert_counts(self.layers, settings)
            if self.spec.is_uneven and self._removes:
                raise UsageError(
                    f"the layers of {model} already have different numbers of experts, so no more experts can be "
                    "removed. Prune only its single weights with --expert-sparsity 0"
                )
        else:
            plan.check(self.spec)
            self.counts = plan.counts
            if plan.experts and "experts" not in settings.parts:
                raise UsageError(
                    "the plan removes experts, but --parts excludes them: add experts to --parts"
                )
            if settings.weight_criterion is None and self._sparse:
                raise UsageError(
                    "the plan removes single weights, but weights none keeps all of them: use only one of the two"
                )
        if self._removes and (beyond := self.layers.expert_names_beyond()):
            raise UnsupportedModelError(
                f"{model} has {len(beyond)} expert tensors outside its {self.spec.num_layers} decoder layers, such as "
                f"{beyond[0]} (multi-token prediction), and config.json has one expert count for all. Prune a copy "
                "without these tensors (transformers' save_pretrained drops them), or keep all experts with "
                "--expert-sparsity 0"
            )
        if statistics is not None and not self.takes_statistics:
            raise UsageError(
                "this run makes no first calibration pass, so it has no statistics to save: leave --statistics out"
            )
        check_pattern(self.layers, settings)
        self.sizes = sizes(self.layers, settings, self.counts, planned=plan is not None)
        self.calibration: texts.CalibrationSet | None = None
        if self._first_pass or self._second_pass:
            check_runs(self.spec)
            check_length(self.spec, settings.length)
            self.calibration = self._texts()
        if statistics is not None:
            check_job_folder(statistics, self._job(), "statistics")

    @property
    def takes_statistics(self) -> bool:
        """Whether the run makes a first pass, so that its statistics can be saved and reused."""
        return self.given is None and (self._scores_experts or self._weighs_outliers)

    @property
    def _scores_experts(self) -> bool:
        return self._removes and bool(self.settings.expert_criterion.needs)

    @property
    def _weighs_outliers(self) -> bool:
        return self.settings.ratios == "outlier_weighed" and self.settings.needs_inputs

    @property
    def _needs(self) -> frozenset[str]:
        """Statistics that the first pass collects: all of them if a folder saves them for other settings."""
        if self.statistics is not None:
            return ALL
        experts = self.settings.expert_criterion.needs if self._scores_experts else ()
        return frozenset({"counts", *experts, *(["squares"] * self._weighs_outliers)})

    @property
    def _removes(self) -> bool:
        return any(kept < self.spec.num_experts for kept in self.counts.values())

    @property
    def _sparse(self) -> bool:
        values = self.given.sparsity.values() if self.given else [self.sizes.second]
        return any(value > 0 for value in values)

    @property
    def _first_pass(self) -> bool:
        return self.takes_statistics and (self._scores_experts or self._sparse)

    @property
    def _second_pass(self) -> bool:
        if not self._sparse or not self.settings.needs_inputs:
            return False
        return self.given is None or bool(self.settings.calibration)

    def estimate(self, store: Store = "dense") -> PruneEstimate:
        """Estimate sizes and memory from the headers and the settings alone."""
        settings, hidden = self.settings, self._hidden_bytes()
        plain = sum(self.checkpoint.plain_bytes(name) for name in self.checkpoint)
        gone = self.sizes.removed / self.sizes.total
        calibrated = self.calibration is not None
        experts = self.spec.num_experts
        experts_after = sum(self.counts.values()) / max(1, len(self.counts))
        return PruneEstimate(
            parameters=self.sizes.total,
            prunable=self.sizes.prunable,
            experts_before=experts,
            experts_after=experts_after,
            second_stage_sparsity=self._second_share(),
            passes=self._first_pass + 2 * self._second_pass,
            size_bytes=round(plain * (1 - gone)) - (self._saved_bytes(plain) if store == "sparse" else 0),
            work_bytes=(2 * hidden if calibrated else 0) + self.sizes.prunable // 8,
            memory_bytes=memory_bytes(
                self.layers,
                kept=experts_after / experts if experts else 1.0,
                first=self._first_pass,
                second=self._second_pass,
                dtype=self.dtype,
                tokens=min(self.rows, settings.sequences) * settings.length,
            ),
        )

    def seconds(self) -> float:
        """Estimate the seconds of all passes by timing one batch through one layer of each kind."""
        passes = self._first_pass + 2 * self._second_pass
        if not passes or self.calibration is None:
            return 0.0
        kinds = {self.spec.experts[index] > 0: index for index in range(self.spec.num_layers)}
        batches = -(-self.settings.sequences // self.rows)
        total = 0.0
        with tempfile.TemporaryDirectory() as folder:
            run = replace(self._run(), ids=self.calibration.ids[: self.rows])
            stream = run.stream(self.checkpoint, self.checkpoint.config, Path(folder))
            for has_experts, index in kinds.items():
                layer = stream.materialise(index, self.layers.read(index))
                begin = time.perf_counter()
                with Collector(stream, index, layer):
                    stream.measure(index, at=0)
                took = time.perf_counter() - begin
                stream.release(index)
                count = len(self.spec.moe_layers)
                total += took * (count if has_experts else self.spec.num_layers - count)
        return total * batches * passes

    def run(
        self,
        out: Path,
        tick: ProgressCallback = lambda *_: None,
        *,
        store: Store = "dense",
        evaluate: Evaluate | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> Pruned:
        """Prune into ``out``. After an interruption, the same call resumes at the last finished layer.

        Args:
            out: Directory to create.
            tick: Progress callback; receives the stage, the finished layers and the total layers.
            store: "sparse" writes a container of `justright.checkpoint.sparse`.
            evaluate: Evaluates a checkpoint; runs on the source first, and on ``out`` once it is complete.
            asked: The requested evaluation, for the report.

        Raises:
            JustrightError: ``out`` exists (unless only its evaluation is missing), the disk is too small, or
                weights are damaged.
        """
        given = self.given.to_json() if self.given else None
        fingerprint = {"settings": self.settings.to_dict(), "plan": given, "store": store}
        if evaluate is not None and lacks_evaluation(out, self.settings, asked):
            return evaluate_result(out, evaluate, tick)
        expected = self.estimate(store)
        check_room(out, expected.size_bytes, expected.work_bytes)
        tick("checking weights", 0, 1)
        with CheckpointWriter(
            out, fingerprint=fingerprint, source=self.model, store=store,
            expected_bytes=expected.size_bytes,
        ) as writer:  # fmt: skip
            model = check_weights(self.checkpoint)
            work = writer.partial / "work"
            before = evaluate_source(work, self.model, evaluate, tick) if evaluate else None
            found = self._first(work, model, tick)
            plan = self.given or self._decide(found, model)
            job = {**fingerprint, **self._job(), "model": model, "plan": plan.to_json()}
            masks = job_folder(work / "masks", job)
            self.sizes = self._sizes_of(plan.counts)
            config = self.checkpoint.config
            if self._removes:
                config = with_experts(config, self.spec, plan.counts)
            few: list[int] = []
            if self._sparse:
                run = self._run() if self._second_pass else None
                few = prune_weights(self.layers, plan, config, self.settings, run, masks, tick)
            done = PrunedWriter(self.layers, plan, self.settings, masks, few, found).run(
                writer, self.sizes, tick
            )
            if before is not None:
                done = replace(done, evaluation={"asked": dict(asked or {}), "before": before, "after": None})
            pictures = {} if self.given else draw(self.layers, plan, self.settings, found)
            provenance = collect_provenance(
                inputs={"model": self.model}, seed=self.settings.seed, hash_inputs=False,
                settings=self.settings.to_dict(), model_fingerprint=model,
            )  # fmt: skip
            writer.finish(config, provenance=provenance, files={
                "README.md": card(done, self.settings),
                PLAN: plan.to_json(),
                JSON: json.dumps(done.to_dict(), indent=1) + "\n",
                HTML: render(done, self.settings, pictures),
            })  # fmt: skip
        tick("writing", self.spec.num_layers, self.spec.num_layers)
        return evaluate_result(out, evaluate, tick) if evaluate else done

    def _texts(self) -> texts.CalibrationSet:
        from justright.checkpoint.tokenizer import load_tokenizer

        settings = self.settings
        if not settings.calibration:
            raise UsageError(
                "these criteria need calibration texts: give a file, a folder, zoo, or hub:OWNER/NAME. Criteria that "
                f"need none: {without_calibration()}"
            )
        tokenizer = load_tokenizer(self.model)
        found = texts.build(
            tokenizer, settings.calibration, settings.sequences, settings.length, settings.seed
        )
        known = self.checkpoint.shape(self.layers.architecture.disk.embedding)[0]
        if (largest := int(found.ids.max())) >= known:
            raise CheckpointError(
                f"the tokenizer of {self.model} produces token id {largest}, but the model has {known} embeddings. The "
                "tokenizer belongs to another model: copy its files from the original repository"
            )
        return found

    def _run(self) -> CalibrationRun:
        assert self.calibration is not None
        return CalibrationRun(self.calibration.ids, self.device, self.dtype, self.rows)

    def _job(self) -> dict[str, Any]:
        ids = self.calibration.fingerprint if self.calibration else None
        return {"calibration": ids, "dtype": str(self.dtype), "device": self.device, "rows": self.rows}

    def _second_share(self) -> float:
        """Fraction of the remaining weights that stage 2 removes, over all layers."""
        if self.given is None:
            return self.sizes.second
        gone = sum(n * self.given.sparsity.get(i, 0.0) for i, n in enumerate(self.sizes.by_layer))
        return gone / max(1, sum(self.sizes.by_layer))

    def _saved_bytes(self, plain: int) -> int:
        """Bytes that the bitmask container saves: it drops the zeros and adds one bit per weight."""
        rest = self.sizes.prunable - self.sizes.removed
        return max(0, round(rest * (self._second_share() * plain / self.sizes.total - 1 / 8)))

    def _hidden_bytes(self) -> int:
        width = torch.empty((), dtype=self.dtype).element_size()
        hidden = self.spec.hidden_size
        return self.settings.sequences * self.settings.length * hidden * width

    def _first(self, work: Path, model: str, tick: ProgressCallback) -> list[LayerStatistics] | None:
        if not self._first_pass:
            return None
        job = {"model": model, **self._job()}
        folder = self.statistics
        if folder is None:
            folder = job_folder(work / "statistics", {**job, "needs": sorted(self._needs)})
        else:
            check_job_folder(folder, job, "statistics")
            job_folder(folder, job)
        return collect(self.layers, self._run(), folder, tick, self._needs)

    def _sizes_of(self, counts: Mapping[int, int]) -> Sizes:
        """Sizes for a known number of experts in every layer."""
        known = sizes(self.layers, self.settings, counts, planned=True)
        return replace(known, second=self.sizes.second)

    def _decide(self, found: list[LayerStatistics] | None, model: str) -> Plan:
        choices: dict[int, KeptExperts] = {}
        if self._removes:
            choices = choose(self.layers, self.counts, self.settings, found)
            counts = {layer: len(choice.kept) for layer, choice in choices.items()}
            self.sizes = self._sizes_of(counts)
        sparsity = (
            layer_sparsity(self.layers, choices, self.sizes, self.settings, found) if self._sparse else {}
        )
        made_from = {"settings": self.settings.to_dict(), "model": model, **self._job()}
        return Plan(
            self.spec.architecture.family,
            self.spec.num_layers,
            self.spec.num_experts,
            choices,
            self.settings.uneven,
            sparsity,
            made_from,
        )


def prune(model: str | Path, out: str | Path, settings: Settings | None = None, **options: Any) -> Pruned:
    """Prune a model into the new directory ``out``.

    Args:
        model: A name that `justright.checkpoint.sources.resolve` takes.
        out: The directory to create; the same call resumes an interrupted run.
        settings: The settings; by default made from the fields of `Settings` in ``options``.
        options: Further arguments of `Pruning`.

    Raises:
        UsageError: an unknown option, or fields of `Settings` beside ``settings``.
        JustrightError: see `Pruning` and `Pruning.run`.
    """
    known = {field.name for field in fields(Settings)}
    changes = {name: options.pop(name) for name in list(options) if name in known}
    allowed = set(inspect.signature(Pruning).parameters) - {"model", "settings"}
    if unknown := sorted(set(options) - allowed):
        raise UsageError(f"prune has no option {unknown[0]!r}; allowed: {', '.join(sorted(known | allowed))}")
    if settings is None:
        settings = Settings(**changes)
    elif changes:
        raise UsageError(f"prune got both settings and {', '.join(changes)}: give only one of the two")
    return Pruning(resolve(str(model)).path, settings, **options).run(Path(out))
