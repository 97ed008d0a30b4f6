"""Training: best weights, resumption after a kill or a full disk, and texts that end at once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from justright.errors import CheckpointError, ResourceError, UsageError
from justright.files import save_tensors
from justright.speculative.lstm_network import LstmModel
from justright.training import pipeline
from justright.training import trainer as run_module
from justright.training.held_out import Accuracy
from justright.training.pipeline import DrafterShape, Job, TrainingJob
from justright.training.self_generated import DataSetting, sample
from justright.training.trainer import TrainSetting
from tiny import VOCAB_SIZE


def job_for(model: Path, texts: Path, out: Path, **changes: Any) -> Job:
    job = Job(
        model,
        out,
        [str(texts)],
        DrafterShape(width=16, steps=2, draft_vocab=50, spec=False),
        DataSetting(sequences=10, held_out=4, prompt_tokens=12, output_tokens=16, batch=4, chat=0.0),
        TrainSetting(epochs=1, rows=3, spec_steps=0, evaluate_every=2, patience=0),
        device="cpu",
    )
    return replace(job, **changes)


def test_after_early_stopping_the_config_tells_of_the_weights_that_are_kept(
    model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first evaluation is the best; two worse ones end the phase, and the first weights are restored."""
    marks = iter([3.0, 2.0, 1.0])
    known: dict[bytes, float] = {}

    def scripted(self: Any) -> Accuracy:
        weights = self.model.later.weight.detach().numpy().tobytes()
        if weights not in known:
            known[weights] = next(marks)
        return Accuracy([0.5], [0.5], known[weights])

    monkeypatch.setattr(run_module.Training, "evaluate", scripted)
    training = TrainSetting(epochs=5, rows=3, spec_steps=0, evaluate_every=2, patience=2)
    job = job_for(model, texts, tmp_path / "d", training=training)
    trained = TrainingJob(job).run()
    curve = json.loads((job.out / "curve.json").read_text())
    assert [point["length"] for point in curve] == [3.0, 2.0, 1.0]
    about = json.loads((job.out / "config.json").read_text())
    assert about["accuracy"]["length"] == trained.accuracy.length == 3.0


def test_a_kill_in_the_last_stage_changes_no_byte(
    model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The phase ends early, after an evaluation that is not the kept weights'; then the process is killed."""
    marks = iter(range(1000, 0, -1))
    known: dict[bytes, float] = {}

    def worse_and_worse(self: Any) -> Accuracy:
        weights = self.model.later.weight.detach().numpy().tobytes()
        if weights not in known:
            known[weights] = float(next(marks))
        return Accuracy([0.5], [0.5], known[weights])

    monkeypatch.setattr(run_module.Training, "evaluate", worse_and_worse)
    training = TrainSetting(epochs=20, rows=3, rate=0.3, spec_steps=0, evaluate_every=1, patience=1)
    whole = job_for(model, texts, tmp_path / "whole", training=training)
    TrainingJob(whole).run()
    curve = json.loads((whole.out / "curve.json").read_text())
    kept = json.loads((whole.out / "config.json").read_text())["accuracy"]
    assert any(kept[name] != curve[-1][name] for name in ("steps", "top", "length")), (
        "the run must be interrupted"
    )
    cut = replace(whole, out=tmp_path / "cut")
    save = LstmModel.save

    def dying(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LstmModel, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        TrainingJob(cut).run()
    monkeypatch.setattr(LstmModel, "save", save)
    TrainingJob(cut).run()
    for name in ("config.json", "curve.json", "model.safetensors"):
        assert (cut.out / name).read_bytes() == (whole.out / name).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b"{"),
        ("state.json", b"[]"),
        ("state.json", b"{}"),
        ("state.json", b'{"of": []}'),
        ("state.json", b"\xff"),
        ("weights.safetensors", b"not tensors"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    name: str, content: bytes, model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LstmModel, "save", dying)
    job = job_for(model, texts, tmp_path / "d")
    with pytest.raises(KeyboardInterrupt):
        TrainingJob(job).run()
    [file] = tmp_path.rglob(name)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged .*delete the folder"):
        TrainingJob(job).run()


@pytest.mark.parametrize(
    "shape", [{"spec": True}, {"spec": False}, {"cell": "attention", "width": None, "steps": 5}]
)
def test_steps_of_sequences_that_end_at_once_are_skipped(
    shape: dict[str, Any], model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine of ten tokens end a text, and each step takes one text, so most steps have nothing to predict."""
    monkeypatch.setattr(pipeline, "end_tokens", lambda *_: frozenset(range(VOCAB_SIZE * 9 // 10)))
    seen: list[int] = []
    step = run_module.Training.take_step

    def noting(self: Any) -> tuple[float, int]:
        loss, count = step(self)
        seen.append(count)
        assert math.isfinite(loss)
        return loss, count

    monkeypatch.setattr(run_module.Training, "take_step", noting)
    job = job_for(model, texts, tmp_path / "d")
    training = TrainSetting(
        epochs=1,
        rows=1,
        spec_rows=1,
        spec_steps=10 if shape.get("spec") else 0,
        evaluate_every=50,
        patience=0,
    )
    job = replace(
        job,
        shape=replace(job.shape, **shape),
        training=training,
        data=replace(job.data, sequences=16, held_out=16, batch=16),
    )
    TrainingJob(job).run()
    assert 0 in seen
    assert max(seen) > 0
    assert (job.out / "model.safetensors").is_file()


@pytest.mark.parametrize("spec", [True, False])
def test_a_model_that_always_ends_at_once_gets_no_drafter(
    spec: bool, model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "end_tokens", lambda *_: frozenset(range(VOCAB_SIZE)))
    job = job_for(model, texts, tmp_path / "d")
    job = replace(
        job, shape=replace(job.shape, spec=spec), training=replace(job.training, spec_steps=2 * spec)
    )
    with pytest.raises(UsageError, match="the model ended each training text with its first token"):
        TrainingJob(job).run()
    assert not job.out.exists()


def test_what_a_full_disk_leaves_is_no_reason_to_refuse(model: Path, texts: Path, tmp_path: Path) -> None:
    job = job_for(model, texts, tmp_path / "d")
    folder = job.partial / "data"
    folder.mkdir(parents=True)
    (folder / "data.json.partial").write_text('{"verif')
    (job.partial / "training.partial").mkdir()
    (job.partial / "training.partial" / "state.json.partial").write_text("{")
    work = TrainingJob(job)
    work.data.begin()
    (folder / "shard-00000.safetensors").write_bytes(b"")  # after a power cut
    work.run()
    assert job.out.is_dir()
    assert not job.partial.exists()
    other = replace(job, out=tmp_path / "e", data_folder=tmp_path / "own")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds files that are not training data"):
        TrainingJob(other)


def test_a_file_that_cannot_be_written_is_no_bug(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"cannot be written .* free disk space"):
        save_tensors({"a": torch.zeros(1000)}, tmp_path / "no" / "folder.safetensors")


def test_texts_that_changed_are_noticed(
    model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_for(model, texts, tmp_path / "d", data_folder=tmp_path / "data")
    step = run_module.Training.take_step

    def stopping(self: Any) -> Any:
        if self.state.step == 2:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(run_module.Training, "take_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        TrainingJob(job).run()
    before = texts.read_text()
    texts.write_text("the the the " + before)
    changed = "their texts, the tokenizer or the chat template have changed"
    for again in (job, replace(job, out=tmp_path / "e")):  # a resume; another drafter of the same data
        with pytest.raises(UsageError, match=changed):
            TrainingJob(again)
    monkeypatch.setattr(run_module.Training, "take_step", step)
    record = tmp_path / "data" / "data.json"
    kept = json.loads(record.read_text())
    del kept["fingerprint"]
    record.write_text(json.dumps(kept))
    TrainingJob(replace(job, out=tmp_path / "older"))  # data of an older version lacks the record
    record.unlink()
    record.write_text("{")
    with pytest.raises(UsageError, match=r"data\.json is damaged"):
        TrainingJob(job)
    texts.write_text(before)
    record.write_text(json.dumps(kept))
    TrainingJob(job).run()
    assert job.out.is_dir()


def test_a_verifier_whose_logits_are_not_finite_writes_no_data(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    work = TrainingJob(job_for(model, texts, tmp_path / "d"))
    verifier = work._verifier()
    for temperature, spoiled in ((1e-38, False), (0.7, True)):
        if spoiled:
            verifier.model.get_output_embeddings().weight.data[5] = math.nan
        setting = replace(work.setting, temperature=temperature)
        with pytest.raises(ResourceError, match=rf"divided by the temperature {temperature} are not finite"):
            sample(verifier, [[9, 10, 11]], [0.0], setting, frozenset(), torch.Generator().manual_seed(0))
