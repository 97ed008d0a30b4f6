"""Fits a probe and thresholds that hold an accuracy at the fewest tokens, from problems answered in both modes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from justright.errors import UsageError
from justright.intervals import interval
from justright.reasoning.scorers import Probe

FOLDS = 5
_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
LEAST = 40
"""Minimum number of problems for a fit."""
ADVISED = 200
"""Number of problems below which the figures are too uncertain to rely on."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The results of both modes on the same problems.

    Attributes:
        hidden: ``[problems, hidden_size]``, each prompt's last state in fast mode.
        confidence: ``[problems]``, the least probability of a token of the fast answer; 0 if it was truncated.
        fast_right: ``[problems]`` bool.
        slow_right: ``[problems]`` bool.
        fast_tokens: ``[problems]``, of the answer.
        slow_tokens: ``[problems]``, reasoning included.
    """

    hidden: Tensor
    confidence: Tensor
    fast_right: Tensor
    slow_right: Tensor
    fast_tokens: Tensor
    slow_tokens: Tensor

    def __len__(self) -> int:
        return len(self.hidden)


@dataclass(frozen=True, slots=True)
class ThresholdPoint:
    """A threshold with its ``accuracy``, mean ``tokens`` per problem and ``slow``, the share with reasoning."""

    threshold: float
    accuracy: float
    tokens: float
    slow: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def fit_probe(outcomes: Outcomes, floor: float, about: dict[str, Any] | None = None) -> Probe:
    """A probe and its threshold, with a threshold for ``escalate`` (in ``about``).

    The probe learns where the fast answer is wrong. Its threshold is chosen on held-out scores (five folds), for the
    fewest tokens with at least the accuracy ``floor``.

    Args:
        outcomes: at least `LEAST` problems.
        floor: accuracy to hold, in (0, 1].
        about: goes into the probe's record.

    Raises:
        UsageError: too few problems, or a floor that no threshold reaches.
    """
    check_asked(len(outcomes), floor)
    x = outcomes.hidden.double().numpy()
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / scale
    wrong = (~outcomes.fast_right).numpy().astype(float)
    penalty, unseen = _cross_validated(x, wrong)
    weight, bias = _logistic(x, wrong, penalty)
    scores = torch.from_numpy(unseen)
    doubts = 1 - outcomes.confidence.double()
    best = cheapest(curve(scores, outcomes), floor)
    again = cheapest(curve(doubts, outcomes, both=True), floor)
    record = {
        "floor": floor,
        "problems": len(outcomes),
        "auto": _figures(best, scores, outcomes),
        "escalate": _figures(again, doubts, outcomes, both=True) | {"threshold": 1 - again.threshold},
        "always": {
            mode: _figures(point, _decided(mode, outcomes), outcomes)
            for mode, point in always(outcomes).items()
        },
        "penalty": penalty,
    }
    vectors = (torch.tensor(v, dtype=torch.float32) for v in (weight, mean, scale))
    weights, means, scales = vectors
    return Probe(weights, float(bias), means, scales, best.threshold, record | (about or {}))


def check_asked(problems: int, floor: float) -> None:
    """Validate the inputs of a fit before any problem is answered.

    Raises:
        UsageError: too few problems, or an invalid floor.
    """
    if not 0 < floor <= 1:
        raise UsageError(f"the accuracy floor is {floor}; allowed: above 0 to 1")
    if problems < LEAST:
        raise UsageError(f"{problems} problems are too few to fit a probe: give at least {LEAST}")


def curve(scores: Tensor, outcomes: Outcomes, *, both: bool = False) -> list[ThresholdPoint]:
    """The result of every threshold, from always slow (-inf) to always fast.

    Args:
        scores: ``[problems]``; above a threshold a problem is answered with reasoning.
        outcomes: of the same problems.
        both: a problem answered with reasoning also costs its fast answer (``escalate``).
    """
    found = []
    for threshold in [-1.0, *sorted(set(scores.tolist()))]:
        means = [float(values.mean()) for values in _taken(threshold, scores, outcomes, both=both)]
        found.append(ThresholdPoint(threshold, *means))
    return found


def _taken(
    threshold: float, scores: Tensor, outcomes: Outcomes, *, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A threshold's result for each problem: whether it is right, its tokens, whether it is answered with reasoning."""
    slow = scores > threshold
    right = torch.where(slow, outcomes.slow_right, outcomes.fast_right).double()
    fast_cost = outcomes.fast_tokens.double() * (torch.ones_like(slow) if both else ~slow)
    return right, fast_cost + outcomes.slow_tokens.double() * slow, slow.double()


def _figures(
    point: ThresholdPoint, scores: Tensor, outcomes: Outcomes, *, both: bool = False
) -> dict[str, Any]:
    """A point for the record: each mean with its 95% interval, under its name with ``_95``."""
    found: dict[str, Any] = dict(point.to_dict())
    taken = _taken(point.threshold, scores, outcomes, both=both)
    for name, values in zip(("accuracy", "tokens", "slow"), taken, strict=True):
        found[f"{name}_95"] = list(interval(values.tolist(), found[name]))
    return found


def cheapest(points: list[ThresholdPoint], floor: float) -> ThresholdPoint:
    """The point with the fewest tokens and at least the accuracy ``floor``.

    Raises:
        UsageError: there is none.
    """
    good = [point for point in points if point.accuracy >= floor]
    if not good:
        best = max(points, key=lambda point: point.accuracy)
        raise UsageError(
            f"no threshold reaches an accuracy of {floor:.3f} on these problems; the highest is {best.accuracy:.3f}, "
            f"with {best.slow:.0%} of them in slow mode: give a floor of at most that"
        )
    return min(good, key=lambda point: (point.tokens, -point.accuracy))


def always(outcomes: Outcomes) -> dict[str, ThresholdPoint]:
    """The results of reasoning always, never, and (``oracle``) only where it helps."""
    slow, fast = (curve(_decided(mode, outcomes), outcomes) for mode in ("slow", "fast"))
    oracle = curve(_decided("oracle", outcomes), outcomes)
    return {
        "slow": slow[0],
        "fast": fast[-1],
        "oracle": [point for point in oracle if point.threshold < 1][-1],
    }


def _decided(mode: str, outcomes: Outcomes) -> Tensor:
    """Scores above 0 where reasoning helps, for ``oracle``; else 0 for all problems."""
    helps = outcomes.slow_right & ~outcomes.fast_right
    return (helps if mode == "oracle" else torch.zeros_like(helps)).double()


def _cross_validated(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """The penalty with the least log loss on held-out folds, and its held-out scores."""
    fold = np.random.default_rng(0).permutation(len(y)) % FOLDS
    best: tuple[float, float, np.ndarray] | None = None
    for penalty in _PENALTIES:
        scores = np.empty(len(y))
        for k in range(FOLDS):
            weight, bias = _logistic(x[fold != k], y[fold != k], penalty)
            scores[fold == k] = 1 / (1 + np.exp(-(x[fold == k] @ weight + bias)))
        clipped = scores.clip(1e-6, 1 - 1e-6)
        loss = float(-(y * np.log(clipped) + (1 - y) * np.log(1 - clipped)).mean())
        if best is None or loss < best[0]:
            best = loss, penalty, scores
    assert best is not None
    return best[1], best[2]


def _logistic(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Weights and bias that minimise ``sum log loss + penalty / 2 * |weights|^2``."""

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ parameters[:-1] + parameters[-1]
        chance = 1 / (1 + np.exp(-logits))
        value = np.logaddexp(0, logits).sum() - y @ logits + penalty / 2 * (parameters[:-1] ** 2).sum()
        error = chance - y
        return float(value), np.append(x.T @ error + penalty * parameters[:-1], error.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return found[:-1], float(found[-1])
