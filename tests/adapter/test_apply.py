"""The switch on a running model: no change while off, the fast model when on, and mixed modes in one batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine_helpers import prompt_of
from justright.adapter.adapter import read_adapter
from justright.adapter.apply import AppliedSwitch, Rows
from justright.adapter.extract import Form, extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.checkpoint.reader import Checkpoint
from justright.engine.model_runner import Verifier
from justright.engine.step import StepInput
from justright.errors import CheckpointError, UnsupportedModelError, UsageError
from tiny import ALL, MOE, save_tiny

MakePair = Callable[..., tuple[Path, Path]]
FULL = RankRule("energy", 1.0)
PROMPT = prompt_of(13)


def switched(slow: Path, adapter: Path, **options: object) -> Verifier:
    verifier = Verifier.load(slow, **options)  # type: ignore[arg-type]
    verifier.switch = AppliedSwitch(verifier.model, read_adapter(adapter))
    return verifier


def last_logits(verifier: Verifier, prompt: list[int], factor: float = 0.0, slot: int = 0) -> Tensor:
    verifier.clear(slot)
    output = None
    for chunk in verifier.prefill(slot, prompt, factor):
        output = chunk
    assert output is not None
    return output.logits


@pytest.mark.parametrize("family", ALL)
def test_on_it_is_the_fast_model_and_off_the_slow_one(
    kept_pair: MakePair, tmp_path: Path, family: str
) -> None:
    """At full rank with exact small tensors, on is the fast model; off is the slow model bit for bit (logits)."""
    slow, fast = kept_pair(family, norms=True)
    done = extract(Pair(slow, fast), tmp_path / "adapter", FULL)
    assert done.exact
    assert not [n for n, far in done.residuals.items() if far > 0]
    for kernels in ("packed", "plain"):
        verifier = switched(slow, done.path, cpu_kernels=kernels)
        before = last_logits(Verifier.load(slow, cpu_kernels=kernels), PROMPT)  # type: ignore[arg-type]
        expected = last_logits(Verifier.load(fast, cpu_kernels=kernels), PROMPT)  # type: ignore[arg-type]
        assert torch.equal(last_logits(verifier, PROMPT), before)
        torch.testing.assert_close(last_logits(verifier, PROMPT, 1.0), expected, rtol=2e-3, atol=2e-3)
        assert not torch.allclose(before, expected, atol=0.05)
        assert torch.equal(last_logits(verifier, PROMPT), before), "off again, nothing is left"
        assert not any(module._forward_hooks for module in verifier.model.modules())


@pytest.mark.parametrize("family", ALL)
def test_a_mixed_batch_is_its_single_requests(kept_pair: MakePair, tmp_path: Path, family: str) -> None:
    """Slow, fast and soft rows in one forward, as chains and a tree, equal the rows of separate forwards."""
    slow, fast = kept_pair(family, norms=True)
    done = extract(Pair(slow, fast), tmp_path / "adapter", RankRule("energy", 0.8))
    verifier = switched(slow, done.path, slots=4)
    factors = [0.0, 1.0, 0.5, 1.0]
    prompts = [prompt_of(9 + i, seed=i) for i in range(4)]
    inputs = [
        StepInput(0, [11], factor=0.0),
        StepInput(1, [12, 13, 14], [0, 0], factor=1.0),
        StepInput(2, [15, 16], factor=0.5),
        StepInput(3, [17], factor=1.0),
    ]
    alone = []
    for slot, (prompt, one) in enumerate(zip(prompts, inputs, strict=True)):
        last_logits(verifier, prompt, factors[slot], slot)
        alone += verifier.step([one])
        verifier.keep(slot, [])
    together = verifier.step(inputs)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(alone[0].logits[0], alone[3].logits[0], atol=0.05)
    for slot in range(4):
        verifier.keep(slot, [])
    slow_only = verifier.step([replace(one, factor=0.0) for one in inputs])[0].logits
    off = float((together[0].logits - slow_only).abs().max()) / float(slow_only.abs().max())
    assert off <= (1e-5 if family in MOE else 0.0), (
        "a slow row beside fast ones, against the same batch all slow"
    )


def test_a_soft_switch_is_the_merged_checkpoint_of_its_factor(make_pair: MakePair, tmp_path: Path) -> None:
    for family in ("qwen3", "gpt_oss"):
        slow, fast = make_pair(family, norms=True)
        pair, rule = Pair(slow, fast), RankRule("energy", 0.6)
        adapter = extract(pair, tmp_path / f"{family}-adapter", rule)
        merged = extract(pair, tmp_path / f"{family}-merged", rule, form="merged", factor=0.3)
        verifier = switched(slow, adapter.path)
        torch.testing.assert_close(
            last_logits(verifier, PROMPT, 0.3),
            last_logits(Verifier.load(merged.path), PROMPT),
            rtol=2e-3,
            atol=2e-3,
        )


@pytest.mark.parametrize("form", ["compact", "portable"])
def test_the_engine_applies_an_adapter_as_peft_does(make_pair: MakePair, tmp_path: Path, form: Form) -> None:
    """Ranks that differ by matrix, and padded ranks, give the same logits as PEFT."""
    slow, fast = make_pair("llama")
    rule = RankRule("energy", 0.7, scope="global")
    path = extract(Pair(slow, fast), tmp_path / form, rule, form=form).path
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(slow, dtype=torch.float32), str(path)
    )
    with torch.no_grad():
        expected = peft.eval()(torch.tensor([PROMPT])).logits[0, -1:]
    torch.testing.assert_close(last_logits(switched(slow, path), PROMPT, 1.0), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "mixtral"])
@pytest.mark.parametrize(
    "targets",
    [
        ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
        ["gate_up_proj", "experts.down_proj"],
        ["layers.1.mlp.experts.down_proj"],
    ],
)
def test_adapters_of_peft_that_name_parameters_by_their_ends(
    tmp_path: Path, family: str, targets: list[str]
) -> None:
    """Configs as PEFT's users write them: empty lists, bfloat16, and a scale that is not a power of two."""
    slow = save_tiny(family, tmp_path / "slow")
    config = LoraConfig(
        r=3, lora_alpha=7, target_modules=["q_proj"], target_parameters=targets, modules_to_save=[]
    )
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(slow, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(2)
    changed = {n: p for n, p in peft.named_parameters() if "lora_" in n}
    with torch.no_grad():
        for name, parameter in changed.items():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_((noise * (0.5 if "lora_A" in name else 0.05)).bfloat16())
        expected = peft.eval()(torch.tensor([PROMPT])).logits[0, -1:]
    peft.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    verifier = switched(slow, tmp_path / "adapter")
    assert float((last_logits(verifier, PROMPT) - expected).abs().max()) > 0.05
    torch.testing.assert_close(last_logits(verifier, PROMPT, 1.0), expected, rtol=1e-4, atol=1e-4)


def test_target_parameters_that_do_not_say_which_are_refused(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_parameters": ["x.down_proj", "x.up_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"base_model.model.a.x.lora_{one}.weight": torch.ones(1, 1) for one in "AB"}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"changes 1 parameters of a\.x"):
        read_adapter(tmp_path)


def test_keys_and_values_never_cross_modes(make_pair: MakePair, tmp_path: Path) -> None:
    """A slot with the same prompt is reused in the same mode, and not in another mode."""
    slow, fast = make_pair("llama")
    verifier = switched(slow, extract(Pair(slow, fast), tmp_path / "adapter", FULL).path)
    fresh = last_logits(verifier, PROMPT, 1.0)
    for held, asked in ((0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (1.0, 0.5)):
        last_logits(verifier, PROMPT, held)
        assert verifier.reuse(0, [*PROMPT, 9], asked) == 0
    last_logits(verifier, PROMPT[:8], 1.0)
    assert verifier.reuse(0, PROMPT, 1.0) == 8
    [*_, output] = verifier.prefill(0, PROMPT[8:], 1.0)
    assert output is not None
    torch.testing.assert_close(output.logits, fresh, rtol=1e-4, atol=1e-4)


def test_static_shapes_switch_alike(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("qwen3", norms=True)
    path = extract(Pair(slow, fast), tmp_path / "adapter", FULL).path
    grown, static = switched(slow, path, slots=2), switched(slow, path, slots=2, cache="static")
    outputs = []
    for verifier in (grown, static):
        for slot, factor in enumerate((1.0, 0.0)):
            last_logits(verifier, PROMPT, factor, slot)
        outputs.append(verifier.step([StepInput(0, [5, 6, 7], factor=1.0), StepInput(1, [5])]))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-3, atol=1e-3)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12))
@settings(max_examples=40)
def test_rows_are_those_with_a_factor(factors: list[float]) -> None:
    rows = Rows.of(factors, torch.device("cpu"), torch.float32)
    changed = [i for i, factor in enumerate(factors) if factor]
    if not changed:
        assert rows is None
        return
    assert rows is not None
    assert (rows.index is None) == (len(changed) == len(factors))
    assert sorted(int(i) for _, positions in rows.groups for i in positions) == changed
    assert rows.unchanged(torch.device("cpu")).tolist() == [i for i, f in enumerate(factors) if not f]
    if rows.factors is not None:
        assert rows.factors.flatten().tolist() == [factors[i] for i in changed]
    else:
        assert all(factors[i] == 1 for i in changed)


def test_adapters_of_other_models_are_refused(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("llama")
    path = extract(Pair(slow, fast), tmp_path / "adapter", FULL).path
    adapter = read_adapter(path)
    adapter.check_base(Checkpoint.open(slow))
    with pytest.raises(UsageError, match="was made for"):
        adapter.check_base(Checkpoint.open(fast))
    other = Verifier.load(save_tiny("gpt_oss", tmp_path / "other"))
    with pytest.raises(UsageError, match="made for another model"):
        AppliedSwitch(other.model, adapter)
    wide = Verifier.load(save_tiny("llama", tmp_path / "wide", intermediate_size=128))
    with pytest.raises(UsageError, match=r"has \d+ inputs and \d+ outputs"):
        AppliedSwitch(wide.model, adapter)


def test_what_is_no_adapter_is_refused(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("llama")
    path = extract(Pair(slow, fast), tmp_path / "adapter", RankRule("fixed", 2)).path
    config = json.loads((path / "adapter_config.json").read_text())
    for change, error, message in [
        ({"peft_type": "IA3"}, UnsupportedModelError, "allowed: LORA"),
        ({"use_dora": True}, UnsupportedModelError, "use_dora"),
        ({"bias": "all"}, UnsupportedModelError, "biases"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedModelError, "modules_to_save"),
    ]:
        (path / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(error, match=message):
            read_adapter(path)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_adapter(path)
    (path / "adapter_config.json").write_text(json.dumps(config))
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_adapter(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        read_adapter(path)
