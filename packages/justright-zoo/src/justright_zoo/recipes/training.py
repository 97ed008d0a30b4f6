"""The training loop: Muon and AdamW, warm-up, plateau and linear decay; checkpoints without pickle; resumable.

The state after a step depends only on the recipe, its seed and the step: batches are drawn by step number, and a
checkpoint holds the weights, the optimizers' moments, and the curve so far.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from justright.files import recover_folder, swap_folder
from justright.kernels.cpu import has_bfloat16
from justright_zoo.recipes.data import IGNORED, Batch


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length and learning rates.

    Attributes:
        steps: optimizer steps.
        rows: sequences per step.
        length: tokens per sequence.
        rate: peak learning rate.
        warm_up: share of the steps before the peak.
        decay: share of the steps, at the end, over which the rate falls to zero.
        weight_decay: on matrices only.
        clip: largest gradient norm.
        muon: Muon for the decoder's matrices (Jordan 2024; torch's), AdamW for the rest; False: AdamW for all.
    """

    steps: int
    rows: int
    length: int
    rate: float
    warm_up: float = 0.02
    decay: float = 0.4
    weight_decay: float = 0.1
    clip: float = 1.0
    muon: bool = True

    def rate_at(self, step: int) -> float:
        """Learning rate of ``step``, from 0."""
        rising = (step + 1) / max(1.0, self.warm_up * self.steps)
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.rate * min(1.0, rising, falling)


def loss_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy of tokens with labels, plus each layer's load-balancing loss if the config sets it.

    The head, a third of a small model, runs only on tokens with labels. Matrices are multiplied in bfloat16 if the
    processor has instructions for it; weights and sums stay in float32.
    """
    config = model.config
    balanced = bool(getattr(config, "output_router_logits", False))
    options = {"output_router_logits": True} if balanced else {}
    targets = batch.labels[:, 1:]
    learned = targets != IGNORED
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
        output = model.base_model(input_ids=batch.input_ids, use_cache=False, **options)
        logits = model.get_output_embeddings()(output.last_hidden_state[:, :-1][learned])
    loss = torch.nn.functional.cross_entropy(logits.float(), targets[learned])
    if balanced:
        # By layer: transformers pools all layers, so an expert unused in one layer is balanced by those of others.
        experts, top_k = config.num_experts, config.num_experts_per_tok
        aux = sum(load_balancing_loss_func((logits,), experts, top_k) for logits in output.router_logits)
        loss = loss + config.router_aux_loss_coef * aux
    return loss


def matrices_of(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The decoder's matrices without routers; every stacked expert is a view, which `share_gradients` serves."""
    found = {}
    for name, parameter in model.named_parameters():
        if ".layers." not in name or parameter.ndim < 2 or name.endswith(".gate.weight"):
            continue
        if parameter.ndim == 2:
            found[name] = parameter
        else:
            for expert in range(len(parameter)):
                found[f"{name}.{expert}"] = torch.nn.Parameter(parameter.data[expert])
    return found


def share_gradients(model: PreTrainedModel, matrices: dict[str, torch.nn.Parameter]) -> None:
    """Set the gradient of every expert's view (see `matrices_of`) to its part of the stacked gradient."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and parameter.grad is not None:
            for expert in range(len(parameter)):
                if (view := matrices.get(f"{name}.{expert}")) is not None:
                    view.grad = parameter.grad[expert]


Report = Callable[[int, int, float, float], None]
"""``(steps done, steps in all, loss, tokens per second)``"""


class Training:
    """One model's training in one folder; resumes from the checkpoint there.

    Args:
        model: with its initial weights; a checkpoint replaces them.
        batch: makes the batch of a step.
        schedule: length and learning rates.
        folder: of the checkpoint.
        fingerprint: identifies this training.

    Raises:
        ValueError: the folder holds the checkpoint of another training.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch: Callable[[int], Batch],
        schedule: Schedule,
        folder: Path,
        fingerprint: dict[str, Any],
    ) -> None:
        self.model = model.float().train()
        self.batch = batch
        self.schedule = schedule
        self.folder = folder
        self.fingerprint = json.loads(json.dumps(fingerprint | {"schedule": asdict(schedule)}))
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.matrices = matrices_of(model) if schedule.muon else {}
        self.others = {
            name: p
            for name, p in model.named_parameters()
            if name not in self.matrices and f"{name}.0" not in self.matrices and p.requires_grad
        }
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {
                        "params": [p for p in self.others.values() if p.ndim >= 2],
                        "weight_decay": schedule.weight_decay,
                    },
                    {"params": [p for p in self.others.values() if p.ndim < 2], "weight_decay": 0.0},
                ],
                lr=schedule.rate,
                betas=(0.9, 0.95),
            )
        ]
        if schedule.muon:
            self.optimizers.append(
                torch.optim.Muon(
                    self.matrices.values(),
                    lr=schedule.rate,
                    weight_decay=schedule.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        recover_folder(folder, "state.json")
        if (folder / "state.json").exists():
            self._load()

    def run(self, report: Report, *, save_every_s: float = 120.0) -> None:
        """Train to the end; save every ``save_every_s`` seconds and on interruption."""
        saved = time.monotonic()
        try:
            while self.step < self.schedule.steps:
                begin = time.perf_counter()
                loss = self.take_step()
                took = time.perf_counter() - begin
                self.seconds += took
                if self.step % 10 == 0 or self.step == self.schedule.steps:
                    self.curve.append((self.step, round(loss, 4)))
                report(self.step, self.schedule.steps, loss, self.schedule.rows * self.schedule.length / took)
                if time.monotonic() - saved > save_every_s:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()
        self.model.eval()

    def take_step(self) -> float:
        """Take one optimizer step; returns its loss."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.rate_at(self.step)
        loss = loss_of(self.model, self.batch(self.step))
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        share_gradients(self.model, self.matrices)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write the checkpoint, and replace the old one in a single step."""
        partial = self.folder.with_name(self.folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        save_file(weights, partial / "weights.safetensors")
        names = {p: name for name, p in (self.others | self.matrices).items()}
        moments = {
            f"{names[p]}/{key}": value
            for optimizer in self.optimizers
            for p, state in optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        save_file(moments, partial / "optimizer.safetensors")
        state = {"step": self.step, "seconds": self.seconds, "curve": self.curve, "of": self.fingerprint}
        (partial / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")
        swap_folder(self.folder)

    def _load(self) -> None:
        state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        if state["of"] != self.fingerprint:
            raise ValueError(
                f"{self.folder} holds the checkpoint of another training ({state['of']}, not {self.fingerprint}); "
                "delete the folder to start again"
            )
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve = [(step, loss) for step, loss in state["curve"]]
        weights = load_file(self.folder / "weights.safetensors")
        moments = load_file(self.folder / "optimizer.safetensors")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        adamw, *muon = self.optimizers
        for name, parameter in self.others.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            adamw.state[parameter] = {key: moments[f"{name}/{key}"] for key in keys}
        for optimizer in muon:
            for name, parameter in self.matrices.items():
                optimizer.state[parameter] = {"momentum_buffer": moments[f"{name}/momentum_buffer"]}
