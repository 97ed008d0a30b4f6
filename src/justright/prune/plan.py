"""The pruning plan: a file that users can read, edit, share, and apply to another checkpoint.

It lists the experts that each layer keeps, the cluster that each of them represents, and the sparsity of each
layer's matrices. It does not list single weights: applying the plan scores them, with calibration or by magnitude.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from justright.architectures.spec import ModelSpec
from justright.errors import CheckpointError, UsageError
from justright.prune.experts import KeptExperts

FORMAT = 1
FILE_NAME = "plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """The experts to keep and the sparsity of each layer.

    Attributes:
        family: The ``model_type`` of the source model.
        num_layers: Number of decoder layers.
        num_experts: Routed experts per layer before pruning; 0 for a dense model.
        experts: Layer -> its kept experts; empty if every layer keeps all.
        uneven: Whether layers may keep different numbers of experts, which stock loaders cannot read.
        sparsity: Layer -> fraction of each matrix row to remove.
        made_from: Criterion, settings, and the fingerprints of model, calibration and statistics.
    """

    family: str
    num_layers: int
    num_experts: int
    experts: Mapping[int, KeptExperts] = field(default_factory=dict)
    uneven: bool = False
    sparsity: Mapping[int, float] = field(default_factory=dict)
    made_from: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> dict[int, int]:
        """Layer -> number of kept experts, for the layers that lose any."""
        return {layer: len(choice.kept) for layer, choice in self.experts.items()}

    @property
    def kept(self) -> int:
        """Kept experts per layer; the largest number if layers differ."""
        return max(self.counts.values(), default=self.num_experts)

    @property
    def kept_text(self) -> str:
        """``13``, or ``9 to 14`` if layers differ."""
        counts = sorted(set(self.counts.values())) or [self.num_experts]
        return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))

    def to_json(self) -> str:
        """Serialise the plan to the text of its file."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, file: Path) -> Plan:
        """Read a file written by `to_json`, possibly edited by hand.

        Raises:
            CheckpointError: The file is missing, or is not a plan.
        """
        try:
            data = json.loads(file.read_text(encoding="utf-8-sig"))
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']}, and this version reads {FORMAT}")
            _only(data, _KEYS)
            experts = {int(layer): _choice(choice) for layer, choice in data["experts"].items()}
            sparsity = {int(layer): float(value) for layer, value in data["sparsity"].items()}
            family, layers, count = str(data["family"]), int(data["num_layers"]), int(data["num_experts"])
            return cls(
                family, layers, count, experts, bool(data["uneven"]), sparsity, dict(data["made_from"])
            )
        except OSError as error:
            raise CheckpointError(f"the plan {file} cannot be read: {error.strerror or error}") from error
        except KeyError as error:
            raise CheckpointError(f"{file} is not a pruning plan: it lacks {error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is not a pruning plan: {error}") from error

    def check(self, spec: ModelSpec) -> None:
        """Validate that the plan fits the model and leaves it able to run.

        Raises:
            UsageError: The family or shape differs, an expert does not exist, fewer experts stay than a token
                needs, layers keep different numbers, or a sparsity is outside [0, 1).
        """
        mine = (spec.architecture.family, spec.num_layers, spec.num_experts)
        theirs = (self.family, self.num_layers, self.num_experts)
        if mine != theirs:
            raise UsageError(
                f"the plan is for {theirs[0]} with {theirs[1]} layers of {theirs[2]} experts, but the model is "
                f"{mine[0]} with {mine[1]} layers of {mine[2]}: give the plan of this model"
            )
        for layer, value in self.sparsity.items():
            if not 0 <= value < 1 or not 0 <= layer < self.num_layers:
                raise UsageError(
                    f"the plan has sparsity {value} in layer {layer}; allowed: [0, 1) in layers 0 to "
                    f"{self.num_layers - 1}"
                )
        if self.sparsity and set(self.sparsity) != set(range(self.num_layers)):
            missing = sorted(set(range(self.num_layers)) - set(self.sparsity))
            raise UsageError(
                f"the plan has no sparsity for layers {missing}: list every layer, with 0 to keep all its weights"
            )
        if not self.experts:
            return
        if set(self.experts) != set(spec.moe_layers):
            raise UsageError(
                f"the plan lists experts for layers {sorted(self.experts)}, but the model has experts in layers "
                f"{list(spec.moe_layers)}: list exactly those"
            )
        counts = set(self.counts.values())
        for count in counts:
            check_count(spec, count, "list more experts in the plan")
        if len(counts) > 1 and not self.uneven:
            raise UsageError(
                f"the plan keeps {min(counts)} to {max(counts)} experts per layer, which only justright loads: keep "
                'the same number in every layer, or set "uneven": true in the plan'
            )
        groups = spec.expert_groups[0]
        size = self.num_experts // groups
        for layer, choice in self.experts.items():
            where = f"layer {layer} of the plan: "
            if list(choice.kept) != sorted(set(choice.kept)):
                raise UsageError(f"{where}`kept` must list different experts in ascending order")
            known = [*choice.kept, *(e for members in choice.clusters for e in members)]
            if wrong := [e for e in known if not 0 <= e < self.num_experts]:
                raise UsageError(
                    f"{where}expert {wrong[0]} does not exist; allowed: 0 to {self.num_experts - 1}"
                )
            if len({sum(e // size == g for e in choice.kept) for g in range(groups)}) > 1:
                raise UsageError(
                    f"{where}`kept` must list equally many experts of each of the {groups} routing groups"
                )
            pairs = list(zip(choice.kept, choice.clusters, strict=False))
            if len(choice.kept) != len(choice.clusters) or any(e not in members for e, members in pairs):
                raise UsageError(
                    f"{where}`clusters` must hold one list for each expert of `kept`: the experts that it represents, "
                    "itself included. It may also be left out"
                )


_KEYS = ("format", "family", "num_layers", "num_experts", "uneven", "experts", "sparsity", "made_from")


def _only(data: dict[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(data) - set(known)):
        raise ValueError(f"it has unknown keys {', '.join(unknown)}; allowed: {', '.join(known)}")


def _choice(data: dict[str, Any]) -> KeptExperts:
    """Parse a layer's entry; ``clusters`` and ``averaged`` are optional in a hand-edited plan."""
    _only(data, ("kept", "clusters", "averaged"))
    kept = tuple(map(int, data["kept"]))
    clusters = tuple(tuple(map(int, members)) for members in data.get("clusters", [[e] for e in kept]))
    return KeptExperts(kept, clusters, bool(data.get("averaged", False)))


def least_count(spec: ModelSpec) -> int:
    """Return the smallest number of experts per layer that the model's routing supports."""
    top_k, (groups, chosen) = spec.experts_per_token, spec.expert_groups
    moe = spec.architecture.moe
    assert moe is not None
    # With a correction bias a group is scored by its two best experts (deepseek_v3), so each needs two.
    pair = 2 if moe.group_keys is not None and moe.router.correction_bias is not None else 1
    return max(top_k, groups * max(pair, -(-top_k // chosen)))


def check_count(spec: ModelSpec, count: int, remedy: str = "lower --expert-sparsity") -> None:
    """Validate that the model's routing supports ``count`` experts; ``remedy`` is the advice in the error.

    Raises:
        UsageError: ``count`` is below top-k, or does not divide evenly into the routing groups.
    """
    top_k, (groups, chosen) = spec.experts_per_token, spec.expert_groups
    if count % groups:
        raise UsageError(
            f"{count} experts do not divide evenly into this model's {groups} routing groups: keep a multiple of "
            f"{groups}"
        )
    least = least_count(spec)
    if count < least:
        raise UsageError(
            f"{count} experts would be kept, but each token needs {top_k}"
            + (f" from {chosen} of {groups} groups" if groups > 1 else "")
            + f": keep at least {least} ({remedy})"
        )
