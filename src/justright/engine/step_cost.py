"""The cost of a verification on this machine: measured, stored, and corrected at run time.

Speculation pays only where verifying n tokens costs less than n single steps. That curve differs between machines,
models and context lengths, so it is measured once per model and machine and then follows the real step times.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

METHOD = 3
"""Version of the measurement: costs measured by another version are not read."""
_SIZES = (1, 8, 32, 2, 16, 4, 64)
_NEAR = 64
_FAR = 2048
_FARTHEST = 8192
_FAR_SIZE = 32
"""Also measured with a long past, besides the first two sizes: more rows mean less noise in the cost of one."""
_REPEATS = 3
_MOST_REPEATS = 10
_BUDGET_S = 6.0
_SCALE_RATE = 0.1
_SIZE_RATE = 0.03

TimeStep = Callable[[int, int], float]
Windows = tuple[int | None, ...]


@dataclass(slots=True)
class StepCost:
    """Seconds of one forward over n tokens after p cached ones: ``near(n) + (keys(p) - keys(64)) * slope(n)``.

    ``near`` interpolates the measurements at p = 64; ``keys`` is the number of the p tokens that a layer
    reads, averaged over the layers (some attend only within a window); ``slope`` is linear in n, from a
    second measurement with a longer past. `observe` corrects the curve by real step times: a machine that is
    slower or faster than at the measurement moves the whole curve at once, and the residual bends it, slowly,
    near that size. A step of n tokens never costs more than n steps of one.

    Attributes:
        sizes: measured numbers of tokens, ascending, from 1.
        near_s: seconds at 64 cached tokens, per size.
        slope_s: extra seconds per key of a layer: for one token, and for each further one.
        complete: all sizes were measured within the time limit, so that the curve is worth storing.
        windows: attention window of each layer; None for full attention.

    Raises:
        ValueError: sizes that do not ascend from 1, or invalid times.
    """

    sizes: tuple[int, ...]
    near_s: tuple[float, ...]
    slope_s: tuple[float, float]
    complete: bool = True
    windows: Windows = (None,)
    _scale: float = field(init=False, default=1.0)
    _factors: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        good = (
            len(self.sizes) == len(self.near_s) > 0
            and self.sizes[0] == 1
            and all(a < b for a, b in pairwise(self.sizes))
            and all(isfinite(s) and s > 0 for s in self.near_s)
            and all(isfinite(s) and s >= 0 for s in self.slope_s)
        )
        if not good:
            raise ValueError(f"invalid step costs: {self.sizes}, {self.near_s}, {self.slope_s}")
        self._factors = np.ones(len(self.sizes))

    @classmethod
    def measure(
        cls,
        time_step: TimeStep,
        *,
        context: int,
        largest: int = max(_SIZES),
        windows: Windows = (None,),
    ) -> StepCost:
        """Measure with ``time_step(tokens, past) -> seconds``; takes the minimum of several, since noise only adds.

        The sizes alternate, so that a machine that is busy for a while does not make one size look more
        expensive than the others: up to ten rounds, and at most about 6 seconds, on a slow machine with fewer
        sizes (at least 1 and 8, three rounds regardless of time). The curve is corrected at run time.

        Args:
            time_step: runs one forward.
            context: the maximum number of tokens in the cache.
            largest: the largest step ever run.
            windows: see the class.
        """
        # A quarter of a long context: the noise of the slope grows with the distance of extrapolation.
        near = min(_NEAR, context // 4)
        far = min(max(_FAR, min(context // 4, _FARTHEST)), context // 2)
        wanted = [n for n in _SIZES if n <= max(largest, 1) and n + far <= context]
        points = [(n, near) for n in wanted[:2]] + [(n, far) for n in wanted[:2]]
        needed = len(points)
        for n in wanted[2:]:
            points += [(n, near), (n, far)] if n == _FAR_SIZE else [(n, near)]
        for point in points[:needed]:  # warm-up: loading and compilation do not count
            time_step(*point)
        spent, taken = 0.0, 0
        for point in points:  # the first round, which may compile kernels, shows how many rounds fit
            if taken >= needed and spent * (1 + _REPEATS) > _BUDGET_S:
                break
            spent += time_step(*point)
            taken += 1
        least = dict.fromkeys(points[:taken], inf)
        for turn in range(_MOST_REPEATS):
            if turn >= _REPEATS and spent > _BUDGET_S:
                break
            for point in least:
                seconds = time_step(*point)
                least[point] = min(least[point], seconds)
                spent += seconds
        sizes = tuple(sorted(n for n, past in least if past == near))
        near_s = np.maximum.accumulate([least[n, near] for n in sizes])
        both = {n: (least[n, near], least[n, far]) for n, past in least if past == far and (n, near) in least}
        slopes = _slopes(both, max(_mean_keys(far, windows) - _mean_keys(near, windows), 1.0))
        return cls(sizes, tuple(float(s) for s in near_s), slopes, taken == len(points), windows)

    def curve(self, past: int, largest: int) -> NDArray[np.float64]:
        """Seconds of a step of 1, 2, ..., ``largest`` tokens after ``past`` cached ones: ``[largest]``."""
        tokens = np.arange(1, largest + 1)
        near = np.interp(tokens, self.sizes, np.asarray(self.near_s) * self._factors)
        beyond = tokens > self.sizes[-1]
        near[beyond] *= tokens[beyond] / self.sizes[-1]
        one, more = self.slope_s
        keys = max(_mean_keys(past, self.windows) - _mean_keys(_NEAR, self.windows), 0.0)
        seconds = self._scale * (near + keys * (one + more * (tokens - 1)))
        bounded: NDArray[np.float64] = np.minimum(seconds, seconds[0] * tokens)
        return bounded

    def observe(self, tokens: int, past: int, seconds: float) -> None:
        """Correct the curve by a step of ``tokens`` after ``past`` cached ones that took ``seconds``."""
        expected = float(self.curve(past, tokens)[-1])
        ratio = min(max(seconds / max(expected, 1e-9), 0.5), 2.0)
        nearest = int(np.argmin(np.abs(np.asarray(self.sizes) - tokens)))
        self._scale *= ratio**_SCALE_RATE
        self._factors[nearest] *= ratio**_SIZE_RATE

    def save(self, path: Path) -> None:
        """Write the measured curve as JSON, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        data = {"sizes": self.sizes, "near_s": self.near_s, "slope_s": self.slope_s}
        partial.write_text(json.dumps(data))
        partial.replace(path)

    @classmethod
    def read(cls, path: Path, windows: Windows = (None,)) -> StepCost | None:
        """The curve that `save` wrote, for a model with these windows, or None if there is no usable one."""
        try:
            data = json.loads(path.read_text())
            one, more = data["slope_s"]
            sizes, near_s = data["sizes"], data["near_s"]
            slopes = float(one), float(more)
            return cls(tuple(map(int, sizes)), tuple(map(float, near_s)), slopes, windows=windows)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _mean_keys(past: int, windows: Windows) -> float:
    """How many of ``past`` cached tokens a layer reads, averaged over the layers."""
    return sum(past if window is None else min(past, window) for window in windows) / len(windows)


def _slopes(seconds: dict[int, tuple[float, float]], gap: float) -> tuple[float, float]:
    """Extra seconds per key of a layer: for one token, and for each further one.

    ``seconds`` holds, per number of tokens, a step's time near and with ``gap`` more keys per layer. All
    tokens read the same keys and values, so a further one never adds more than the first.
    """
    per_cached = {n: max(far - near, 0.0) / gap for n, (near, far) in seconds.items()}
    few, many = min(per_cached), max(per_cached)
    one = max(per_cached[few], per_cached[many] / many)
    more = max(per_cached[many] - per_cached[few], 0.0) / max(many - few, 1)
    return one, min(more, one)
