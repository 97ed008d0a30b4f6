"""Training: resumed equals uninterrupted, schedules, batches by step, trained and frozen parts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from justright_zoo.recipes import training
from justright_zoo.recipes.catalogue import RECIPES
from justright_zoo.recipes.data import IGNORED, Batch, Corpus, fact_row, problem_row, question_text, step_row
from justright_zoo.recipes.problems import Problem, Step, direct, overthought
from justright_zoo.recipes.tokenizer import END, SLOW_TEMPLATE, train_tokenizer
from justright_zoo.recipes.training import Schedule, Training, loss_of, matrices_of

SHIPPED = {name: recipe for name, recipe in RECIPES.items() if recipe.shipped}
SCHEDULE = Schedule(steps=6, rows=2, length=8, rate=1e-2)


def tiny() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def batch(step: int) -> Batch:
    ids = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(step))
    return Batch(ids, ids)


def begun(folder: Path, **fingerprint: object) -> Training:
    return Training(tiny(), batch, SCHEDULE, folder, {"of": "test", **fingerprint})


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = begun(tmp_path / "whole")
    whole.run(lambda *_: None)

    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    first = begun(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        first.run(stop)  # type: ignore[arg-type]
    second = begun(tmp_path / "cut")
    assert second.step == 3
    second.run(lambda *_: None)
    for ours, theirs in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert whole.curve == second.curve
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"], (
        "no half-written folder is left"
    )


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "x").run(lambda *_: None)
    with pytest.raises(ValueError, match="another training"):
        begun(tmp_path / "x", seed=1)


def test_the_schedule_rises_stays_and_falls() -> None:
    schedule = Schedule(steps=100, rows=1, length=1, rate=1.0, warm_up=0.1, decay=0.4)
    rates = [schedule.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:60] == [1.0] * 50
    assert rates[-1] == pytest.approx(1 / 40)
    assert all(rate > 0 for rate in rates)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    rng = random.Random(0)
    from justright_zoo.recipes.problems import draw

    texts = [draw("chain", 2, rng, held_out=False).question for _ in range(50)]
    tokenizer = train_tokenizer([*texts, "The answer is 1.", "<think>\nWait\n</think>"])
    domains = ("fiction", "manuals", "python", "c", "legal", "dialogue")
    tokens = {name: np.arange(5000, dtype=np.uint16) % 200 for name in domains}
    return Corpus(tokenizer, tokens)


def test_only_answers_are_learned(corpus: Corpus) -> None:
    row, labels = problem_row(corpus.tokenizer, [("chain", 2)], lambda p, _: direct(p), 200, random.Random(3))
    assert len(row) == len(labels) == 200
    assert all(label in (IGNORED, token) for token, label in zip(row, labels, strict=True))
    learned = corpus.tokenizer.decode([label for label in labels if label != IGNORED])
    assert learned.startswith("The answer is ")
    assert "What" not in learned
    assert END in learned


def test_facts_are_no_held_out_problem_and_only_results_are_learned(corpus: Corpus) -> None:
    row, labels = fact_row(corpus.tokenizer, 3000, random.Random(0))
    facts = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)\.", corpus.tokenizer.decode(row))
    assert len(facts) > 100
    for before, operation, operand, after in facts:
        step = Step(int(before), operation, int(operand))
        assert step.after == int(after)
        assert not Problem("chain", "", (step,)).held_out
    learned = corpus.tokenizer.decode([label for label in labels if label != IGNORED])
    assert re.fullmatch(r"( \d+\.\n)+( \d*\.?)?", learned)


def test_the_prompt_is_what_the_templates_write(corpus: Corpus) -> None:
    """The slow template opens the reasoning that the fast one closes; the training row is the same text."""
    for recipe in SHIPPED.values():
        corpus.tokenizer.chat_template = recipe.template
        text = corpus.tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is 1 + 1?"}], tokenize=False, add_generation_prompt=True
        )
        assert (
            question_text(corpus.tokenizer, "What is 1 + 1?") == "<|user|>\nWhat is 1 + 1?\n<|assistant|>\n"
        )
        opened = "<think>\n" if recipe.template == SLOW_TEMPLATE else ""
        assert text == question_text(corpus.tokenizer, "What is 1 + 1?") + opened


def test_tags_are_tokens_that_show(corpus: Corpus) -> None:
    ids = corpus.tokenizer("<think>\nWait\n</think>\n3", add_special_tokens=False)["input_ids"]
    assert sum(token in corpus.tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) for token in ids) == 2
    assert corpus.tokenizer.decode(ids, skip_special_tokens=True) == "<think>\nWait\n</think>\n3"
    assert len(corpus.tokenizer("12345", add_special_tokens=False)["input_ids"]) == 5


def test_thinking_can_be_left_out_of_the_slow_template(corpus: Corpus) -> None:
    corpus.tokenizer.chat_template = RECIPES["slow"].template
    text = corpus.tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert text.endswith("<think>\n\n</think>\n")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipes_batch_depends_on_the_step_alone(name: str, corpus: Corpus) -> None:
    recipe = RECIPES[name]
    first, again, other = (recipe.batch(corpus, step) for step in (5, 5, 6))
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.input_ids, other.input_ids)
    assert first.input_ids.shape == (recipe.schedule.rows, recipe.schedule.length)


def test_the_models_have_the_sizes_that_are_promised() -> None:
    sizes = {name: sum(p.numel() for p in recipe.model().parameters()) for name, recipe in SHIPPED.items()}
    shipped = sum(2 * sizes[name] for name in SHIPPED)
    assert shipped <= 60e6
    assert sizes["fast"] == sizes["slow"]
    moe = RECIPES["moe"].model()
    assert isinstance(moe, Qwen3MoeForCausalLM)
    assert moe.config.num_experts >= 16
    assert moe.config.num_experts_per_tok >= 2
    experts = sum(p.numel() for n, p in moe.named_parameters() if ".experts." in n)
    idle = experts * (1 - moe.config.num_experts_per_tok / moe.config.num_experts)
    routers = sum(p.numel() for n, p in moe.named_parameters() if n.endswith("gate.weight"))
    assert sizes["dense"] == sizes["moe"] - idle - routers, "the dense model has the active size"


def test_a_thought_begins_where_the_slow_template_ends() -> None:
    from justright_zoo.recipes.problems import draw

    rng = random.Random(0)
    assert overthought(draw("chain", 1, rng, held_out=False), rng).startswith("<think>\n")


def tiny_moe() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
    )
    return Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize("make", [tiny, tiny_moe])
def test_the_loss_is_transformers_own(
    make: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "has_bfloat16", lambda: False)
    model, ids = make(), batch(0).input_ids
    labels = ids.masked_fill(ids % 3 == 0, IGNORED)
    expected = model(input_ids=ids, labels=labels, use_cache=False).loss
    torch.testing.assert_close(loss_of(model, Batch(ids, labels)), expected)


def test_experts_are_balanced_in_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pooled over layers, two layers that each starve different experts would look balanced."""
    model = tiny_moe()
    model.config.output_router_logits = True
    model.config.router_aux_loss_coef = 0.5
    plain = loss_of(tiny_moe(), batch(0)).item()
    layers: list[int] = []

    def counted(logits: tuple[torch.Tensor, ...], experts: int, top_k: int) -> torch.Tensor:
        layers.append(len(logits))
        assert logits[0].shape[-1] == experts
        return torch.tensor(float(top_k))

    monkeypatch.setattr(training, "load_balancing_loss_func", counted)
    assert loss_of(model, batch(0)).item() == pytest.approx(plain + 2 * 0.5 * 2)
    assert layers == [1, 1]


def test_every_expert_is_a_matrix_of_its_own_and_is_trained(tmp_path: Path) -> None:
    model = tiny_moe()
    names = matrices_of(model)
    assert f"model.layers.1.mlp.experts.down_proj.{3}" in names
    assert not any("gate.weight" in name or "embed" in name for name in names)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    one = Training(model, batch, SCHEDULE, tmp_path / "moe", {})
    one.take_step()
    one.save()
    changed = (
        model.get_parameter("model.layers.1.mlp.experts.gate_up_proj")
        != before["model.layers.1.mlp.experts.gate_up_proj"]
    )
    assert changed.flatten(1).any(1).sum() >= 2, "those that were routed to"
    again = Training(tiny_moe(), batch, SCHEDULE, tmp_path / "moe", {})
    for each in (one, again):
        each.take_step()
    for (name, mine), (_, theirs) in zip(
        one.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_plain_steps_are_learned_without_a_conversation() -> None:
    tokenizer = train_tokenizer(["What is 1 + 2 - 3? Start with 4. 5 6 7 8 9 0 has more" * 3])
    row, labels = step_row(tokenizer, [("chain", 3)], 120, random.Random(0))
    assert "<|user|>" not in tokenizer.decode(row)
    learned = tokenizer.decode([label for label in labels if label != IGNORED])
    assert re.search(r"\d+ [+-] \d = \d+\.\n", learned)
    assert "What" not in learned


def test_whole_problems_end_and_the_rest_is_not_learned() -> None:
    tokenizer = train_tokenizer(["What is 1 + 2 - 3? Start with 4. 5 6 7 8 9 0 has more" * 3])
    row, labels = problem_row(
        tokenizer, [("chain", 2)], lambda p, _: direct(p), 150, random.Random(0), whole=True
    )
    assert len(row) == len(labels) == 150
    learned = [label for label in labels if label != IGNORED]
    assert learned[-1] == tokenizer.eos_token_id
    assert labels[-1] == IGNORED
