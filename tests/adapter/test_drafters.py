"""Drafters with the switch: drafts change no mode's output, and one drafter is trained on both modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from draft_helpers import saved_drafter
from engine_helpers import prompt_of
from justright.adapter.adapter import read_adapter
from justright.adapter.apply import AppliedSwitch
from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.engine.decode_loop import DecodeLoop
from justright.engine.llm import LLM
from justright.engine.model_runner import Verifier
from justright.engine.request import Request
from justright.reasoning.budget import ModePlan
from justright.speculative.registry import create_drafter
from justright.training.pipeline import DrafterShape, Job, TrainingJob
from justright.training.self_generated import DataSetting, SelfGenerated
from justright.training.trainer import TrainSetting
from tiny import tiny_model

MakePair = Callable[..., tuple[Path, Path]]
FACTORS = (0.0, 1.0, 0.5, 1.0)


@pytest.mark.parametrize("name", ["lstm", "hybrid", "recycling"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "qwen3_moe"])
def test_mixed_modes_with_drafts_are_the_same_without(
    make_pair: MakePair, tmp_path: Path, family: str, name: str
) -> None:
    slow, fast = make_pair(family)
    adapter = read_adapter(extract(Pair(slow, fast), tmp_path / "adapter", RankRule("energy", 1.0)).path)
    verifier = Verifier.load(slow, slots=3)
    verifier.switch = AppliedSwitch(verifier.model, adapter)
    options = {}
    if name != "recycling":
        options = {"path": str(saved_drafter(tiny_model(family), tmp_path / "d")), "min_prob": 0.0}

    def run(draft: str, **options: object) -> list[list[int]]:
        drafter = create_drafter(draft, **options)
        if drafter is not None:
            drafter.bind(verifier.model, None)
        prompts = [prompt_of(10 + 3 * i, seed=i) * 2 for i in range(4)]
        requests = [
            Request(p, max_tokens=24, plan=ModePlan(factor))
            for p, factor in zip(prompts, FACTORS, strict=True)
        ]
        for _ in DecodeLoop(verifier, drafter=drafter, max_draft=10).run(requests):
            pass
        if drafter is not None:
            assert sum(request.stats.drafted for request in requests) > 0
        return [request.token_ids for request in requests]

    assert run(name, **options) == run("none")


def test_one_drafter_is_trained_on_both_modes(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("llama")
    adapter = extract(Pair(slow, fast), tmp_path / "adapter", RankRule("energy", 1.0)).path
    texts = tmp_path / "words.txt"
    texts.write_text(" ".join(f"word{(i * i) % 17}" for i in range(4000)))
    job = Job(
        slow,
        tmp_path / "drafter",
        [str(texts)],
        DrafterShape(width=32, steps=3),
        DataSetting(sequences=16, held_out=8, prompt_tokens=12, output_tokens=24, batch=8, chat=0.0),
        TrainSetting(epochs=2, rows=4, spec_steps=3, evaluate_every=4),
        str(adapter),
        tmp_path / "data",
        "cpu",
    )
    trained = TrainingJob(job).run()
    assert trained.accuracy.spec_length is not None
    work = TrainingJob(job_of(job, tmp_path))
    data = SelfGenerated(tmp_path / "data", work.setting, trained.config.verifier, job.texts, work.switch)
    [shard, *_] = data.shards(data.training_files)
    assert shard.factors.tolist() == [0.0, 1.0] * 4
    # The states of the second half are those of the fast model.
    model = Verifier.load(fast, cpu_kernels="plain")
    prompt = shard.prompts[1, : int(shard.prompt_lengths[1])].tolist()
    *_, output = model.prefill(0, prompt)
    assert output is not None
    found = shard.hidden[1, 0].float()
    similar = torch.nn.functional.cosine_similarity(output.hidden[0], found, dim=0)
    assert float(similar) > 0.999
    engine = LLM(
        str(slow), switch=str(adapter), draft="lstm", draft_options={"path": str(job.out)}, adaptive=False
    )
    request = engine.request([9, 10, 11], max_tokens=16, ignore_eos=True)
    request.plan = ModePlan(1.0)
    engine.generate_requests([request])
    alone = LLM(str(fast)).generate_request([9, 10, 11], max_tokens=16, ignore_eos=True)
    assert request.token_ids == alone.token_ids


def job_of(job: Job, tmp_path: Path) -> Job:
    """The same for an output folder that does not exist yet."""
    from dataclasses import replace

    return replace(job, out=tmp_path / "other")
