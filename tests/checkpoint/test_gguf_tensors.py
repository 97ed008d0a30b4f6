"""Names, layouts and values of GGUF files, against transformers' own reading of the same files."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gguf_helpers import ARCHITECTURES, add_value, dequantised, gguf_model, write_gguf
from justright.checkpoint.gguf_family import config_of
from justright.checkpoint.gguf_file import GgufFile
from justright.checkpoint.gguf_tensors import GgufTensors, open_gguf
from justright.errors import CheckpointError, UnsupportedModelError
from justright.kernels.gguf_blocks import dequantise_rows

FAMILIES = tuple(ARCHITECTURES)
_UNTOLD = frozenset(("dtype", "architectures", "transformers_version", "rms_norm_eps", "max_window_layers"))
"""Of no effect, or (rms_norm_eps) rounded to float32."""
K_TYPES = (Type.Q4_K, Type.Q5_K, Type.Q6_K)


def by_transformers(path: Path, model: PreTrainedModel) -> PreTrainedModel:
    """With the model's config: transformers does not read every size of a tiny model from the header."""
    with contextlib.redirect_stderr(io.StringIO()):  # it draws progress bars
        return AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=model.config, dtype=torch.float32
        )


def in_memory(tensors: GgufTensors) -> dict[str, torch.Tensor]:
    """Our tensors with the experts stacked as transformers has them in memory."""
    found = {name: tensors.tensor(name) for name in tensors.infos if ".experts." not in name}
    for layer in range(12):
        prefix = f"model.layers.{layer}.mlp.experts"
        experts = [f"{prefix}.{e}" for e in range(12) if f"{prefix}.{e}.down_proj.weight" in tensors.infos]
        if not experts:
            continue

        def part(expert: str, name: str) -> torch.Tensor:
            return tensors.tensor(f"{expert}.{name}_proj.weight")

        found[f"{prefix}.gate_up_proj"] = torch.stack(
            [torch.cat([part(e, "gate"), part(e, "up")]) for e in experts]
        )
        found[f"{prefix}.down_proj"] = torch.stack([part(e, "down") for e in experts])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_transformers_s(family: str, tmp_path: Path) -> None:
    """Names, shapes and values, equal bit for bit."""
    model = gguf_model(family)
    path = write_gguf(tmp_path / "m.gguf", family, Type.Q8_0, model=model)
    expected = by_transformers(path, model).state_dict()
    found = in_memory(open_gguf(path))
    if "lm_head.weight" not in found:
        expected.pop("lm_head.weight")
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_values_that_are_not_quantised_are_the_model_s(family: str, tmp_path: Path) -> None:
    """Written and read back: an oracle beside transformers' reader, which could have our mistakes."""
    model = gguf_model(family)
    found = in_memory(open_gguf(write_gguf(tmp_path / "m.gguf", family, Type.F32, model=model)))
    expected = model.state_dict()
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-6 if "norm" in name else 0)


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1])
def test_types(kind: Type, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "qwen2", kind)
    tensors, name = open_gguf(path), "model.layers.2.mlp.down_proj.weight"
    expected = dequantised(path)["blk.2.ffn_down.weight"]
    assert torch.equal(tensors.tensor(name).float(), expected)
    assert tensors.stored_as(name) == kind.name
    blocks = tensors.blocks(name)
    if kind in (Type.F16, Type.BF16):
        assert blocks is None
        assert tensors.infos[name].dtype == kind.name
    else:
        assert blocks is not None
        assert torch.equal(dequantise_rows(blocks.data, blocks.columns, blocks.type), expected)
        assert tensors.infos[name].dtype == "F32"


@pytest.mark.parametrize("kind", K_TYPES)
@pytest.mark.parametrize("rows", [1, 37])
def test_the_reference_reads_k_blocks_as_the_gguf_package(kind: Type, rows: int) -> None:
    raw = np.random.default_rng(0).integers(
        0, 256, (rows, 768 // 256 * gguf.GGML_QUANT_SIZES[kind][1]), np.uint8
    )
    raw &= 0xBF  # no float16 in it is infinite or NaN
    found = dequantise_rows(torch.from_numpy(raw), 768, int(kind))
    np.testing.assert_array_equal(found.numpy(), gguf.quants.dequantize(raw, kind))


def test_blocks_are_mapped_and_permuted_rows_copied(tmp_path: Path) -> None:
    tensors = open_gguf(write_gguf(tmp_path / "m.gguf"))
    down = tensors.blocks("model.layers.0.mlp.down_proj.weight")
    query = tensors.blocks("model.layers.0.self_attn.q_proj.weight")
    assert down is not None
    assert query is not None
    mapped = torch.frombuffer(tensors.file.data, dtype=torch.uint8)
    begin, end = mapped.data_ptr(), mapped.data_ptr() + len(mapped)
    assert begin < down.data.data_ptr() < end
    assert not begin < query.data.data_ptr() < end
    values = dequantise_rows(query.data, query.columns, query.type)
    assert torch.equal(values, tensors.tensor("model.layers.0.self_attn.q_proj.weight"))


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_the_ends_of_a_tensor(family: str, tmp_path: Path) -> None:
    tensors = open_gguf(write_gguf(tmp_path / "m.gguf", family))
    for name in tensors.infos:
        raw = tensors.tensor(name).contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for size in (8, 256, 10**6):
            assert tensors.ends(name, size) == (raw[:size], raw[-size:])


@pytest.mark.parametrize("family", FAMILIES)
def test_config_is_the_model_s(family: str, tmp_path: Path) -> None:
    """Every setting that the class reads, but for defaults of training and the ids of tokens."""
    model = gguf_model(family)
    path = write_gguf(tmp_path / "m.gguf", family, model=model)
    config = config_of(GgufFile.open(path))
    found = AutoConfig.for_model(config.pop("model_type"), **config)
    differing = {
        key: (value, getattr(found, key))
        for key, value in model.config.to_dict().items()
        if key not in _UNTOLD and getattr(found, key) != value
    }
    assert differing == {}
    assert found.architectures == model.config.architectures or model.config.architectures is None


def test_llama_3_s_rotary_factors(tmp_path: Path) -> None:
    """The factors that transformers computes for Llama 3 are recognised, and no others."""
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = scaled | {"original_max_position_embeddings": 8192, "rope_theta": 500_000.0}
    model = gguf_model("llama", rope_parameters=rope, head_dim=64)
    plain = gguf_model(
        "llama", rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, head_dim=64
    )
    factors = (plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq).numpy()
    assert factors.max() == pytest.approx(8)

    def file(name: str, factors: np.ndarray) -> GgufFile:
        return GgufFile.open(
            write_gguf(
                tmp_path / name,
                model=model,
                more=lambda writer: writer.add_tensor("rope_freqs.weight", factors),
            )
        )

    assert config_of(file("a.gguf", factors))["rope_parameters"] == pytest.approx(rope)
    with pytest.raises(UnsupportedModelError, match="not Llama 3's"):
        config_of(file("b.gguf", factors * np.linspace(1, 2, 32, dtype=np.float32)))


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("linear", {}, {"rope_type": "linear", "factor": 4.0}),
        (
            "yarn",
            {"original_context_length": 64},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        ("none", {}, {"rope_type": "default"}),
    ],
)  # fmt: skip
def test_rotary_scaling(kind: str, more: dict[str, int], expected: dict[str, object], tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_string("qwen2.rope.scaling.type", kind)
        writer.add_float32("qwen2.rope.scaling.factor", 4.0)
        for key, value in more.items():
            writer.add_uint32(f"qwen2.rope.scaling.{key}", value)

    config = config_of(GgufFile.open(write_gguf(tmp_path / "m.gguf", "qwen2", more=add)))
    assert config["rope_parameters"] == {"rope_theta": 10_000.0, **expected}


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    with pytest.raises(
        UnsupportedModelError, match="'mamba'; GGUF files of these can be opened: llama, qwen2"
    ):
        open_gguf(tmp_path / "m.gguf")
    writer.close()


def test_a_llama_with_experts_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", more=lambda writer: writer.add_uint32("llama.expert_count", 8))
    with pytest.raises(UnsupportedModelError, match="a llama with experts"):
        open_gguf(path)


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    extra = np.ones((4, 32), np.float32)
    path = write_gguf(
        tmp_path / "m.gguf", more=lambda writer: writer.add_tensor("blk.0.ffn_gate_exps.weight", extra)
    )
    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_gate_exps\.weight.*llama does not have"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 3, "layers: expected 3, found 4"),
        ("block_count", 2**31 - 1, "found 4"),
        ("embedding_length", 96, r"token_embd: expected \(320, 96\), found \(320, 64\)"),
        ("attention.head_count", 8, "attn_q: expected"),
        ("attention.head_count_kv", 4, "attn_k: expected"),
        ("feed_forward_length", 128, "ffn_up: expected"),
        ("context_length", 2**32 - 1, "context_length is 4294967295; allowed: 1 to 2147483647"),
        ("attention.layer_norm_rms_epsilon", -1.0, r"rms_epsilon is -1\.0; allowed: a number above 0"),
    ],
)
def test_a_header_that_contradicts_the_tensors(key: str, value: float, message: str, tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        leave_out=(f"llama.{key}",),
        more=lambda writer: add_value(writer, f"llama.{key}", value),
    )
    with pytest.raises(CheckpointError, match=message):
        config_of(GgufFile.open(path))
