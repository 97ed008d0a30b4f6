"""Training a drafter on a tiny verifier: it learns, it resumes after a kill, and it rejects bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_helpers import SMALL_TRAINING
from justright.engine.llm import LLM
from justright.engine.loading import decoder_of
from justright.errors import ResourceError, UsageError
from justright.speculative.lstm_network import LstmConfig, LstmModel
from justright.speculative.store import read_config
from justright.training import trainer as run_module
from justright.training.frozen_model import embedded, load_frozen
from justright.training.loss import DraftLoss, prefixes
from justright.training.pipeline import DrafterShape, Job, TrainingJob
from justright.training.prompts import Prompts
from justright.training.self_generated import DataSetting, SelfGenerated, _seed
from justright.training.shard import Shard
from justright.training.trainer import TrainSetting
from tiny import save_tiny, tiny_tokenizer


def job_for(model: Path, texts: Path, out: Path, **changes: Any) -> Job:
    job = Job(
        model,
        out,
        [str(texts)],
        DrafterShape(width=32, steps=3, draft_vocab=100),
        DataSetting(sequences=24, held_out=8, prompt_tokens=12, output_tokens=32, batch=8, chat=0.0),
        TrainSetting(epochs=8, rows=4, spec_steps=6, spec_rows=4, evaluate_every=12, patience=0),
        device="cpu",
    )
    return replace(job, **changes)


QUICK = TrainSetting(epochs=1, rows=4, spec_steps=0)


def make_data(job: Job) -> None:
    """Write the training data of a job, and train nothing."""
    work = TrainingJob(job)
    work._generate(work.data, lambda *_: None)


def test_it_learns_the_verifiers_output(model: Path, texts: Path, tmp_path: Path) -> None:
    told = []
    job = job_for(model, texts, tmp_path / "drafter", data_folder=tmp_path / "data")
    trained = TrainingJob(job).run(lambda *words: told.append(words))
    curve = json.loads((job.out / "curve.json").read_text())
    assert [point["phase"] for point in curve][-1] == "spec"
    assert curve[-1]["loss"] > 0
    plain = [point for point in curve if point["phase"] == "drafter"]
    assert plain[-1]["loss"] < 0.9 * plain[0]["loss"]
    assert {stage for stage, *_ in told} == {"data", "training", "training with [SPEC]"}
    assert not job.partial.exists()
    assert trained.accuracy.spec_length is not None
    config = read_config(job.out, "lstm", LstmConfig)
    assert config.spec
    assert config.draft_vocab == 100
    assert json.loads((job.out / "provenance.json").read_text())
    engine = LLM(str(model), draft="lstm", draft_options={"path": str(job.out)}, adaptive=False)
    plain_output = LLM(str(model)).generate_request([9, 10, 11], max_tokens=24, ignore_eos=True)
    drafted = engine.generate_request([9, 10, 11], max_tokens=24, ignore_eos=True)
    assert drafted.token_ids == plain_output.token_ids
    assert drafted.stats.drafted > 0
    with pytest.raises(UsageError, match="exists already"):
        TrainingJob(job)
    # The data stays in the requested folder, and another drafter uses it.
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "data").glob("*.safetensors")}
    other = job_for(
        model,
        texts,
        tmp_path / "rnn",
        data_folder=tmp_path / "data",
        shape=replace(job.shape, cell="rnn", spec=False),
        training=QUICK,
    )
    assert TrainingJob(other).run().config.cell == "rnn"
    assert before == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "data").glob("*.safetensors")}


def test_data_of_a_larger_run_is_used_and_left(model: Path, texts: Path, tmp_path: Path) -> None:
    larger = job_for(model, texts, tmp_path / "drafter")
    make_data(larger)
    kept = larger.partial / "data"
    before = {file.name: file.read_bytes() for file in kept.glob("*.safetensors")}
    for sequences in (16, 20):  # without whole shards, and a part of the last
        fewer = replace(larger, data=replace(larger.data, sequences=sequences), training=QUICK)
        trained = TrainingJob(fewer).run()
        assert trained.left == kept
        assert {file.name: file.read_bytes() for file in kept.glob("*.safetensors")} == before
        assert [path.name for path in larger.partial.iterdir()] == ["data"]
        larger.out.rename(tmp_path / f"of-{sequences}")
    assert TrainingJob(replace(larger, training=QUICK)).run().left is None
    assert not larger.partial.exists()


def test_a_killed_training_resumed_equals_an_uninterrupted_one(
    model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = TrainSetting(epochs=3, rows=4, spec_steps=6, spec_rows=4, evaluate_every=6, patience=0)
    whole = job_for(model, texts, tmp_path / "whole", training=setting)
    TrainingJob(whole).run()
    cut = job_for(model, texts, tmp_path / "cut", training=setting)
    make, sample_calls = SelfGenerated._make, []

    def dying(self: SelfGenerated, *args: Any) -> Shard:
        sample_calls.append(1)
        if len(sample_calls) == 3:
            raise KeyboardInterrupt
        return make(self, *args)

    monkeypatch.setattr(SelfGenerated, "_make", dying)
    with pytest.raises(KeyboardInterrupt):
        TrainingJob(cut).run()
    assert len(list((cut.partial / "data").glob("*.safetensors"))) == 2
    step = run_module.Training.take_step
    for phase, at in (("drafter", 10), ("spec", 3)):

        def stopping(self: Any, phase: str = phase, at: int = at) -> Any:
            if (self.state.phase, self.state.step) == (phase, at):
                raise KeyboardInterrupt
            return step(self)

        monkeypatch.setattr(run_module.Training, "take_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            TrainingJob(cut).run()
        assert not cut.out.exists()
    monkeypatch.setattr(run_module.Training, "take_step", step)
    TrainingJob(cut).run()
    for name in ("model.safetensors", "config.json", "curve.json"):
        assert (cut.out / name).read_bytes() == (whole.out / name).read_bytes(), name


def test_another_setting_does_not_go_on_in_the_same_folder(model: Path, texts: Path, tmp_path: Path) -> None:
    job = job_for(model, texts, tmp_path / "d", data_folder=tmp_path / "data")
    make_data(job)
    other = job_for(
        model, texts, tmp_path / "e", data_folder=tmp_path / "data", data=replace(job.data, temperature=0.5)
    )
    with pytest.raises(UsageError, match="other settings \\(temperature\\)"):
        TrainingJob(other).run()


def test_of_more_data_only_the_requested_amount_is_used(model: Path, texts: Path, tmp_path: Path) -> None:
    job = job_for(model, texts, tmp_path / "d", data_folder=tmp_path / "data", training=QUICK)
    make_data(job)
    fewer = TrainingJob(replace(job, out=tmp_path / "e", data=replace(job.data, sequences=10)))
    data = SelfGenerated(tmp_path / "data", fewer.setting, fewer.identity, job.texts)
    assert not data.missing
    assert [len(shard.tokens) for shard in data.shards(data.training_files)] == [8, 2]
    assert fewer.run().out.exists()


def test_a_dry_run_finds_what_the_run_would_refuse(model: Path, texts: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match=r"d cannot be created: .*file is a file"):
        TrainingJob(job_for(model, texts, file / "d"))
    with pytest.raises(UsageError, match="is a file"):
        TrainingJob(job_for(model, texts, tmp_path / "d", data_folder=file))
    with pytest.raises(UsageError, match="holds files that are not training data"):
        TrainingJob(job_for(model, texts, tmp_path / "d", data_folder=tmp_path))
    whole = job_for(model, texts, tmp_path / "d", data_folder=tmp_path / "data")
    make_data(whole)
    more = replace(whole, out=tmp_path / "e", data=replace(whole.data, sequences=40))
    assert TrainingJob(more).estimate()["data"]["tokens"] == 16 * 32, (
        "what is there already is not made again"
    )
    with pytest.raises(UsageError, match="other settings"):
        TrainingJob(replace(more, data=replace(whole.data, temperature=0.5)))
    assert not list(tmp_path.glob("e*"))


def test_a_loss_that_is_no_number_stops_it(
    model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DraftLoss.step

    def broken(self: DraftLoss, logits: torch.Tensor, *args: Any) -> Any:
        return step(self, logits * float("nan"), *args)

    monkeypatch.setattr(DraftLoss, "step", broken)
    job = job_for(model, texts, tmp_path / "d")
    with pytest.raises(ResourceError, match=r"the loss of step 0 .* is nan"):
        TrainingJob(job).run()
    assert not job.out.exists()


def test_too_little_text_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError, match=r"have [012] tokens"):
        TrainingJob(job_for(model, str(tmp_path / "empty.txt"), tmp_path / "d"))


def test_prompts_beyond_the_context_are_refused(model: Path, texts: Path, tmp_path: Path) -> None:
    job = job_for(model, texts, tmp_path / "d")
    job = replace(job, data=replace(job.data, output_tokens=100_000))
    with pytest.raises(UsageError, match="do not fit the model's context"):
        TrainingJob(job).run()


@pytest.mark.parametrize(
    "wrong", [{"sequences": 0}, {"temperature": 0.0}, {"chat": 1.5}, {"output_tokens": 2}, {"batch": 0}]
)
def test_wrong_data_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="allowed"):
        DataSetting(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.0}, {"vector_rate": 0.0}, {"epochs": -1}, {"spec_steps": -1}, {"decay": 2.0}]
)
def test_wrong_training_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="allowed"):
        TrainSetting(**wrong)


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(UsageError, match="cell is 'gru'; allowed: lstm, rnn, attention"):
        DrafterShape(cell="gru")


def test_a_dry_run_writes_nothing(model: Path, texts: Path, tmp_path: Path) -> None:
    job = job_for(model, texts, tmp_path / "d")
    found = TrainingJob(job).estimate()
    assert found["data"]["tokens"] == 32 * 32
    assert min(found["data"]["seconds"], found["train_seconds"], found["spec_seconds"]) > 0
    assert found["spec_steps"] == job.training.spec_steps > 0
    plain = TrainingJob(
        job_for(model, texts, tmp_path / "d", shape=DrafterShape(width=32, steps=3, spec=False))
    ).estimate()
    assert plain["spec_steps"] == plain["spec_seconds"] == 0
    assert not list(tmp_path.iterdir())


def test_held_out_prompts_are_of_other_text(texts: Path) -> None:
    prompts = Prompts(tiny_tokenizer(), [str(texts)], length=12, chat=0.0)
    stream, border = prompts.sources[0].stream, prompts.sources[0].border
    seen = [prompts.prompt(i) for i in range(50)] + [prompts.prompt(i, held_out=True) for i in range(50)]
    for index, prompt in enumerate(seen):
        part = stream[:border] if index < 50 else stream[border:]
        assert any(part[i : i + 12] == prompt for i in range(len(part) - 11))
    assert prompts.prompt(7) == Prompts(tiny_tokenizer(), [str(texts)], length=12, chat=0.0).prompt(7)


def test_prefixes_line_up_with_the_verifiers_states() -> None:
    """Row j: the state that predicted token j, then tokens j, j+1, ...; step m's teacher state follows token j+m."""
    tokens = torch.arange(10, 22).reshape(2, 6)
    shard = Shard(
        torch.zeros(2, 3, dtype=torch.long),
        torch.tensor([3, 2]),
        tokens,
        torch.tensor([6, 4]),
        torch.arange(12.0).reshape(2, 6, 1).bfloat16(),
        tokens[..., None].repeat(1, 1, 8),
        torch.full((2, 6, 8), 0.1).half(),
        torch.zeros(2),
    )
    found = prefixes(shard, torch.tensor([1, 0]), 3)
    assert found.sequence.tolist() == [1] * 3 + [0] * 5
    assert found.hidden[:, 0].tolist() == [6, 7, 8, 0, 1, 2, 3, 4]
    assert found.tokens[0].tolist() == [16, 17, 18]
    assert found.targets[0].tolist() == [17, 18, 19]
    assert found.teacher_ids[0, :, 0].tolist() == [17, 18, 19]
    assert found.valid[:3].tolist() == [[True] * 3, [True, True, False], [True, False, False]]


def test_what_the_head_cannot_say_costs_nothing() -> None:
    loss = DraftLoss(torch.tensor([2, 5, 7]), 10)
    logits = torch.zeros(2, 3)
    ids = torch.tensor([[5, 9, 1, 1, 1, 1, 1, 1], [9, 1, 1, 1, 1, 1, 1, 1]])
    probs = torch.full((2, 8), 0.1)
    found = loss.step(logits + torch.tensor([0.0, 1.0, 0.0]), ids, probs, torch.tensor([True, True]))
    expected = -torch.log_softmax(torch.tensor([0.0, 1.0, 0.0]), 0)[1]
    assert float(found) == pytest.approx(float(expected))


def test_the_vector_learns_at_a_rate_of_its_own(model: Path, texts: Path, tmp_path: Path) -> None:
    """AdamW moves each value by about its rate per step; [SPEC]'s rate is relative to the size of a token embedding."""
    moved = []
    for vector_rate in (0.2, 0.4):
        setting = TrainSetting(epochs=0.1, rows=4, spec_steps=1, vector_rate=vector_rate, evaluate_every=99)
        job = job_for(
            model, texts, tmp_path / str(vector_rate), training=setting, data_folder=tmp_path / "data"
        )
        TrainingJob(job).run()
        verifier = load_frozen(model, torch.device("cpu"))
        matrices = (verifier.get_input_embeddings().weight, verifier.get_output_embeddings().weight)
        drafter = LstmModel.load(job.out, *matrices)
        tokens = embedded(verifier, drafter.vocab)
        assert drafter.spec is not None
        size = float(tokens.square().mean().sqrt())
        moved.append(float((drafter.spec - tokens.mean(0)).abs().mean()) / size)
    # One step at a twentieth of the rate (the first of twenty warm-up steps); the file has bfloat16.
    assert moved == pytest.approx([0.2 / 20, 0.4 / 20], rel=0.1)


def test_tokens_are_embedded_as_the_first_layer_sees_them(tmp_path: Path) -> None:
    verifier = load_frozen(save_tiny("gemma2", tmp_path / "gemma2"), torch.device("cpu"))
    seen: list[torch.Tensor] = []
    first = decoder_of(verifier).layers[0]
    first.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    ids = torch.tensor([[3, 5, 7]])
    verifier(input_ids=ids)
    found = embedded(verifier, ids)
    torch.testing.assert_close(found, seen[0])
    assert not torch.allclose(found, verifier.get_input_embeddings().weight[ids]), "this family scales them"


def test_a_damaged_checkpoint_of_a_drafter_loads_nothing(model: Path, texts: Path, tmp_path: Path) -> None:
    job = job_for(model, texts, tmp_path / "d", training=TrainSetting(epochs=0.1, rows=4, spec_steps=0))
    trained = TrainingJob(job).run()
    assert trained.accuracy.spec_length is None
    matrices = (torch.zeros(trained.config.vocab_size, trained.config.hidden_size),) * 2
    assert isinstance(LstmModel.load(job.out, *matrices), LstmModel)


def test_the_attention_baseline_learns_and_drafts(model: Path, texts: Path, tmp_path: Path) -> None:
    job = job_for(model, texts, tmp_path / "d", shape=DrafterShape(cell="attention", draft_vocab=100))
    TrainingJob(job).run()
    curve = json.loads((job.out / "curve.json").read_text())
    assert curve[-1]["loss"] < curve[0]["loss"]
    trees = json.loads((job.out / "config.json").read_text())["trees"]["plain"]
    assert trees["1"][0][0] > 0, (
        "its trees were measured, so that they can be fitted to a machine like the LSTM's"
    )
    options = {"path": str(job.out), "min_prob": 0.0}
    drafted = LLM(str(model), draft="attention", draft_options=options, adaptive=False)
    prompt = list(range(8, 40))
    request = drafted.generate_request(prompt, max_tokens=24, ignore_eos=True)
    assert (
        request.token_ids
        == LLM(str(model)).generate_request(prompt, max_tokens=24, ignore_eos=True).token_ids
    )
    assert request.stats.drafted > 0


def test_several_processes_share_the_work(model: Path, texts: Path, tmp_path: Path) -> None:
    """Two processes on the CPU, as accelerate starts them on GPUs."""
    out = tmp_path / "drafter"
    words = [
        *(
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
        ),
        *(
            "-m",
            "justright",
            "draft",
            "train",
            str(model),
            "-o",
            str(out),
            "--texts",
            str(texts),
            "--device",
            "cpu",
        ),
        *SMALL_TRAINING,
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    curve = json.loads((out / "curve.json").read_text())
    assert [point["step"] for point in curve] == [4, 2], "eight rows a step, four of each process"


def test_a_shard_is_drawn_from_a_stated_seed() -> None:
    """The first 63 bits of a SHA-256, computed with sha256sum, independent of Python's tuple hash."""
    assert _seed(0, 0, held_out=False) == 0x9B350F5E8EA29236 >> 1
    assert _seed(0, 0, held_out=True) == 0x5DAAC0142EC0536B >> 1
    assert _seed(-7, 12, held_out=False) == 0x688988802C31124A >> 1
