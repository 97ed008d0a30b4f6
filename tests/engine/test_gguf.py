"""GGUF files in the engine: weights in their blocks, with the logits of transformers' own model of the same file."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from gguf_helpers import ARCHITECTURES, gguf_model, write_gguf
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.reader import Checkpoint
from justright.engine.llm import LLM
from justright.engine.loading import load_model
from justright.engine.model_runner import Verifier
from justright.engine.sampler import SamplingParams
from justright.errors import CheckpointError, SlowerWarning, UsageError
from justright.kernels import build
from justright.kernels.embedding import QuantisedEmbedding
from justright.kernels.packed import FusedProjections, PackedLinear
from justright.kernels.quantised import QuantisedLinear

FAMILIES = tuple(ARCHITECTURES)
IDS = list(range(3, 60)) + list(range(3, 30))
compiled = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))


def by_transformers(path: Path, model: PreTrainedModel) -> PreTrainedModel:
    with contextlib.redirect_stderr(io.StringIO()):  # it draws progress bars
        return AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=model.config, dtype=torch.float32
        ).eval()


def logits_of(verifier: Verifier) -> torch.Tensor:
    """Of the last token of a prompt of two chunks."""
    *_, output = verifier.prefill(0, IDS)
    assert output is not None
    return output.logits[0]


@compiled
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_transformers_s(family: str, tmp_path: Path) -> None:
    model = gguf_model(family)
    path = write_gguf(tmp_path / "m.gguf", family, Type.Q4_1, model=model)
    with torch.inference_mode():
        expected = by_transformers(path, model)(torch.tensor([IDS])).logits[0, -1]
    verifier = Verifier.load(path, prefill_chunk=64)
    most = float(expected.abs().max())
    # The kernels round activations to 16 bits.
    torch.testing.assert_close(logits_of(verifier), expected, rtol=1e-3, atol=1e-3 * most)
    expanded = logits_of(Verifier.load(path, prefill_chunk=64, weights="float"))
    torch.testing.assert_close(expanded, expected, rtol=1e-5, atol=1e-5 * most)
    linears = [m for m in verifier.model.modules() if isinstance(m, QuantisedLinear)]
    assert len(linears) == len(verifier.spec.linears) + 1
    assert isinstance(verifier.model.get_input_embeddings(), QuantisedEmbedding)
    floats = {name for name, m in verifier.model.named_modules() if isinstance(m, nn.Linear | PackedLinear)}
    assert all(name.endswith("shared_expert_gate") for name in floats)


@compiled
def test_a_tied_head_shares_the_blocks_of_the_embedding(tmp_path: Path) -> None:
    model = Verifier.load(write_gguf(tmp_path / "m.gguf", tie_word_embeddings=True)).model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, QuantisedEmbedding)
    assert isinstance(head, QuantisedLinear)
    assert head.blocks is embedding.blocks


@compiled
def test_plain_values_run_as_ordinary_matrices(tmp_path: Path) -> None:
    """A file in float16 has no blocks: its matrices are packed and fused as any checkpoint's."""
    model = gguf_model("llama")
    path = write_gguf(tmp_path / "m.gguf", kind=Type.F16, model=model)
    verifier = Verifier.load(path)
    fused = {id(m.group) for m in verifier.model.modules() if hasattr(m, "group")}
    assert len(fused) == 2 * model.config.num_hidden_layers
    assert isinstance(verifier.model.model.layers[0].self_attn.q_proj.group, FusedProjections)
    with torch.inference_mode():
        expected = by_transformers(path, model)(torch.tensor([IDS])).logits[0, -1]
    torch.testing.assert_close(logits_of(verifier), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", ["float", "int8"])
def test_blocks_can_be_expanded_or_quantised_anew(weights: str, tmp_path: Path) -> None:
    model = gguf_model("qwen2")
    path = write_gguf(tmp_path / "m.gguf", "qwen2", Type.Q8_0, model=model)
    if weights == "int8" and build.missing() is not None:
        pytest.skip("no compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier = Verifier.load(path, weights=weights)  # type: ignore[arg-type]
    assert type(verifier.model.get_input_embeddings()) is nn.Embedding
    with torch.inference_mode():
        expected = by_transformers(path, model)(torch.tensor([IDS])).logits[0, -1]
    tolerance = 1e-4 if weights == "float" else 5e-2
    torch.testing.assert_close(logits_of(verifier), expected, rtol=tolerance, atol=tolerance)


def test_other_settings_expand_them_and_say_so(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    with pytest.warns(SlowerWarning, match="run as plain floats.*need float32 on a CPU"):
        verifier = Verifier.load(path, dtype=torch.bfloat16)
    assert {p.dtype for p in verifier.model.parameters()} == {torch.bfloat16}
    with pytest.warns(SlowerWarning, match="packed CPU kernels"):
        Verifier.load(path, cpu_kernels="plain")


def test_without_a_compiler_the_values_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    expected = logits_of(Verifier.load(path, weights="float"))
    monkeypatch.setattr("justright.kernels.quantised.missing", lambda: "no C++ compiler is on the PATH")
    with pytest.warns(SlowerWarning, match=r"run as float32.*no C\+\+ compiler"):
        verifier = Verifier.load(path)
    assert torch.equal(logits_of(verifier), expected)


def test_generating_from_the_file_itself(tmp_path: Path) -> None:
    """The tokenizer, the template and the end tokens come from the header."""
    with LLM(str(write_gguf(tmp_path / "m.gguf")), draft="suffix") as llm:
        [output] = llm.chat(
            [{"role": "user", "content": "the quick brown fox"}], SamplingParams(max_tokens=8)
        )
        assert llm.stop_token_ids == {2}
        assert output.prompt is not None
        assert output.prompt.endswith("<|im_start|>assistant\n")
    assert output.token_ids


def test_the_identity_is_that_of_the_float32_copy(tmp_path: Path) -> None:
    """So that a drafter or a switch made for one runs with the other."""
    path = write_gguf(tmp_path / "m.gguf", "gemma3_text", Type.Q5_1)
    model = load_model(path, dtype=torch.float32, device=torch.device("cpu"))
    model.save_pretrained(tmp_path / "copy")
    assert weights_identity(path) == weights_identity(tmp_path / "copy")


def test_a_matrix_of_another_shape_is_refused(tmp_path: Path) -> None:
    """A shape that the header does not state: that of the attention's output."""
    model = gguf_model("llama")
    layer = model.model.layers[1].self_attn
    layer.o_proj.weight = nn.Parameter(layer.o_proj.weight[:32])
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.self_attn\.o_proj\.weight of .* has shape \[32, 64\]"
    ):
        Verifier.load(write_gguf(tmp_path / "m.gguf", model=model))


def test_a_missing_matrix_is_refused(tmp_path: Path) -> None:
    model = gguf_model("llama")
    del model.model.layers[2].mlp.down_proj
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 28 matrices.*layers\.2\.mlp\.down_proj"):
        Verifier.load(write_gguf(tmp_path / "m.gguf", model=model))


def test_float_weights_with_another_dtype_are_no_error(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Verifier.load(path, dtype=torch.bfloat16, weights="float").dtype == torch.bfloat16
    with pytest.raises(UsageError, match="int8"):
        Verifier.load(path, dtype=torch.bfloat16, weights="int8")


def test_tensors_open_as_of_any_checkpoint(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "qwen3_moe")
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.shape("model.layers.0.mlp.experts.7.up_proj.weight") == (32, 64)
        assert checkpoint.spec.num_experts == 8
        assert checkpoint.blocks("model.norm.weight") is None
        with pytest.raises(CheckpointError, match="has no tensor 'nothing'"):
            checkpoint.blocks("nothing")
