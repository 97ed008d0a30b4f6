"""Extract a switch from a pair: decompose, choose ranks, write. Extraction is resumable and its output atomic."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from justright.adapter.adapter import REPORT
from justright.adapter.export import (
    exact_name,
    refuse_stacked,
    save_adapter,
    save_exact,
    save_merged,
    split_key,
)
from justright.adapter.inspection import save_spectrum
from justright.adapter.pair import Pair
from justright.adapter.rank_rules.base import RULES
from justright.adapter.ranks import RankRule, choose_ranks, factor_bytes, rule_for_budget
from justright.adapter.spectra import (
    CPU,
    METHODS,
    Method,
    SpectraFolder,
    Spectrum,
    decompose,
    make_spectra,
)
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.sources import resolve
from justright.errors import JustrightError, UsageError
from justright.files import check_job_folder, check_new, job_folder
from justright.progress import ProgressCallback
from justright.provenance import collect as collect_provenance

Form = Literal["compact", "portable", "merged"]
FORMS: tuple[Form, ...] = ("compact", "portable", "merged")


@dataclass(frozen=True, slots=True)
class Extracted:
    """The result of an extraction, also written as ``switch.json``.

    Attributes:
        path: The adapter or checkpoint.
        form: One of `FORMS`.
        rule: The rank rule.
        ranks: Rank of every matrix.
        bytes: Bytes of the factors.
        energy: Kept fraction of ``sum s^2`` over all matrices.
        residuals: Name -> ``||slow - fast|| / ||fast||`` of the tensors that the switch leaves unchanged.
        exact: The same for the tensors that it changes exactly.
        base: `weights_identity` of the slow model.
        slow: Name of the slow model.
    """

    path: Path
    form: Form
    rule: RankRule
    ranks: Mapping[str, int]
    bytes: int
    energy: float
    residuals: Mapping[str, float]
    exact: Mapping[str, float] = field(default_factory=dict)
    base: str | None = None
    slow: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True, slots=True)
class ExtractEstimate:
    """The expected cost of an extraction.

    Attributes:
        matrices: Number of matrices to decompose.
        numbers: Number of their elements.
        seconds: Decomposition time on this machine, from one matrix of each shape.
        spectra_bytes: Maximum disk space for spectra during the run.
        memory_bytes: Memory for the largest matrix, its factors and its decomposition.
        residuals: As in `Extracted`.
    """

    matrices: int
    numbers: int
    seconds: float
    spectra_bytes: int
    memory_bytes: int
    residuals: Mapping[str, float]


def estimate(
    pair: Pair, max_rank: int = 512, svd: Method = "exact", device: torch.device = CPU, *, exact: bool = True
) -> ExtractEstimate:
    """Estimate the cost by timing one matrix of each shape; write nothing.

    Raises:
        CheckpointError: A weight is NaN or infinite.
    """
    pair.check_finite()
    shapes: dict[tuple[int, ...], int] = {}
    taken: dict[tuple[int, ...], float] = {}
    for index in range(pair.layers):
        for matrix, slow, fast in pair.matrices(index):
            shape = tuple(slow.shape[-2:])
            shapes[shape] = shapes.get(shape, 0) + (len(slow) if matrix.stacked else 1)
            if shape not in taken:
                ours, theirs = (x[0] if matrix.stacked else x for x in (slow, fast))
                begin = time.perf_counter()
                decompose((ours.float() - theirs.float()).to(device), max_rank, svd)
                taken[shape] = time.perf_counter() - begin
    largest = max(math.prod(shape) for shape in shapes)
    kept = sum(n * min(max_rank, *shape) * sum(shape) * 4 for shape, n in shapes.items())
    return ExtractEstimate(
        sum(shapes.values()),
        sum(n * math.prod(shape) for shape, n in shapes.items()),
        sum(n * taken[shape] for shape, n in shapes.items()),
        kept,
        5 * 4 * largest,
        {n: far for n, far in pair.residuals().items() if not (exact and exact_name(pair, n))},
    )


def extract(
    pair: Pair,
    out: Path,
    rule: RankRule,
    *,
    form: Form = "compact",
    budget: int | None = None,
    factor: float = 1.0,
    max_rank: int = 512,
    exact: bool | None = None,
    svd: Method = "exact",
    workers: int = 1,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    spectra: Path | None = None,
    tick: ProgressCallback = lambda *_: None,
) -> Extracted:
    """Write the switch of a pair.

    Args:
        pair: A validated pair.
        out: Directory to create.
        rule: Rank rule.
        form: A PEFT adapter, ``compact`` or ``portable`` (padded to one rank), or a ``merged`` checkpoint.
        budget: Bytes of the factors, instead of the rule's share.
        factor: Adapter scale of a merged checkpoint: 0 is the slow model, 1 the fast one.
        max_rank: Directions of each matrix to keep for later rules.
        exact: Store the changes of norms, biases and routers exactly, beside the factors. None: yes, except in a
            portable adapter, which other engines read.
        svd: Exact, or randomized (large matrices, small ranks): only for energy of power 2, fixed and ratio.
        workers: Layers to decompose in parallel.
        device: Device of the decomposition.
        dtype: Dtype of the factors.
        spectra: Folder for the decompositions; by default beside ``out`` for the duration of the run.
        tick: Progress callback.

    Raises:
        JustrightError: ``out`` exists, the models are identical, or the rule keeps nothing or more than ``max_rank``.
    """
    check_new(out)
    _check_form(pair, form, factor)
    exact = form != "portable" if exact is None else exact
    check_svd(svd, rule, workers)
    pair.check_finite()
    work = out.with_name(out.name + ".partial")
    identities = [weights_identity(path) for path in pair.paths]
    job = {"slow": identities[0], "fast": identities[1], "max_rank": max_rank, "svd": svd}
    if spectra is not None:
        check_job_folder(spectra, job, "spectra")
    kept = job_folder(spectra or work.with_suffix(".spectra"), job)
    try:
        found = make_spectra(pair, kept, max_rank, tick, method=svd, workers=workers, device=device)
        chosen = _choose(found.spectra(), rule, budget, dtype)
        result = replace(_plan(pair, found, out, form, chosen, dtype, exact=exact), base=identities[0])
        tick("writing", 0, 1)
        result = _write(pair, found, result, work, dtype, factor)
    except JustrightError:
        if spectra is None:  # the run failed: nothing to resume
            shutil.rmtree(kept, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
        raise
    if spectra is None:
        shutil.rmtree(found.folder)
    tick("writing", 1, 1)
    return result


def _check_form(pair: Pair, form: str, factor: float) -> None:
    """Validate the output's form and the adapter scale of a merged checkpoint.

    Raises:
        UsageError: One is not allowed, or a portable adapter cannot hold the pair's stacked experts.
    """
    if form not in FORMS:
        raise UsageError(f"form {form!r}; allowed: {', '.join(FORMS)}")
    if not 0 <= factor <= 1:
        raise UsageError(f"factor {factor}; allowed: 0 (the slow model) to 1 (the fast model)")
    if form == "portable":
        refuse_stacked(pair)


def extract_adapter(
    slow: str | Path, fast: str | Path, out: str | Path, rule: RankRule | None = None, **options: Any
) -> Extracted:
    """Write the adapter that turns a reasoning model into the model that it was trained from.

    Args:
        slow: the reasoning model, see `justright.checkpoint.sources.resolve`.
        fast: the model that it was trained from.
        out: the directory to create.
        rule: how ranks are chosen; by default ``RankRule()``, which keeps 90% of the energy of every matrix.
        options: further ones of `extract`.

    Raises:
        JustrightError: see `extract`; models that are no pair.
    """
    check_new(Path(out))
    pair = Pair(resolve(str(slow)).path, resolve(str(fast)).path)
    return extract(pair, Path(out), rule or RankRule(), **options)


def _plan(
    pair: Pair, found: SpectraFolder, out: Path, form: Form, chosen: tuple[dict[str, int], RankRule],
    dtype: torch.dtype, *, exact: bool,
) -> Extracted:  # fmt: skip
    """Describe the output for the chosen ranks."""
    ranks, rule = chosen
    known = found.spectra()
    left = pair.residuals()
    carried = {n: left.pop(n) for n in list(left) if exact and left[n] > 0 and exact_name(pair, n)}
    size = factor_bytes(ranks, {n: s.shape for n, s in known.items()}, dtype.itemsize)
    return Extracted(
        out, form, rule, ranks, size, _kept_energy(known, ranks), left, carried, None, str(pair.paths[0])
    )


def _write(
    pair: Pair, found: SpectraFolder, result: Extracted, work: Path, dtype: torch.dtype, factor: float
) -> Extracted:
    """Write the checkpoint or adapter; it gets its final name once complete."""
    provenance = collect_provenance(
        inputs={"slow": pair.paths[0], "fast": pair.paths[1]}, hash_inputs=False, settings=asdict(result.rule)
    )
    if result.form == "merged":
        save_merged(
            pair, found, result.ranks, result.path, factor, exact=list(result.exact), provenance=provenance
        )
        return result
    return _save(pair, found, result, work, dtype, provenance.to_json())


def check_svd(svd: str, rule: RankRule, workers: int) -> None:
    """Validate the decomposition method for the rule, and the number of workers.

    Raises:
        UsageError: The rule cannot use the method, the method is unknown, or there are no workers.
    """
    if svd not in METHODS:
        raise UsageError(f"svd {svd!r}; allowed: {', '.join(METHODS)}")
    if workers < 1:
        raise UsageError(f"workers {workers}; allowed: whole numbers from 1")
    chosen = RULES.get(rule.rule)
    if svd == "randomized" and chosen.needs_all(rule):
        power = f" of power {rule.power}" if "power" in chosen.takes else ""
        raise UsageError(
            f"rule {rule.rule}{power} needs all singular values, but a randomized decomposition finds only the "
            "largest: choose svd exact, or another rule"
        )


def _save(
    pair: Pair, found: SpectraFolder, result: Extracted, work: Path, dtype: torch.dtype, provenance: str
) -> Extracted:
    """Write the adapter's folder; it gets its final name once complete."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    written = save_adapter(pair, found, result.ranks, work, dtype, padded=result.form == "portable")
    save_spectrum(found.spectra(), work)
    if result.exact:
        save_exact(pair, list(result.exact), work)
    result = replace(result, bytes=written)
    (work / REPORT).write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
    (work / "provenance.json").write_text(provenance, encoding="utf-8")
    work.rename(result.path)
    return result


def _choose(
    known: Mapping[str, Spectrum], rule: RankRule, budget: int | None, dtype: torch.dtype
) -> tuple[dict[str, int], RankRule]:
    values = {name: one.filled() for name, one in known.items()}
    shapes = {name: one.shape for name, one in known.items()}

    def layer_of(name: str) -> int:
        return split_key(name)[0]

    if budget is not None:
        rule = rule_for_budget(values, shapes, budget, rule, dtype.itemsize, layer_of)
    return choose_ranks(values, rule, layer_of), rule


def _kept_energy(known: Mapping[str, Spectrum], ranks: Mapping[str, int]) -> float:
    total = sum(one.energy for one in known.values())
    kept = sum(float(one.values[: ranks[name]].double().square().sum()) for name, one in known.items())
    return kept / total
