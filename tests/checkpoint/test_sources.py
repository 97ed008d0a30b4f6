import subprocess
import sys
from importlib.metadata import EntryPoint
from unittest.mock import Mock

import pytest
from huggingface_hub import errors as hub_errors

from checkpoint_helpers import make_model
from gguf_helpers import write_gguf
from justright.checkpoint import sources
from justright.checkpoint.reader import Checkpoint, read_json
from justright.errors import (
    CheckpointError,
    MissingExtraError,
    ResourceError,
    SourceError,
    UsageError,
)


@pytest.fixture
def model_dir(tmp_path):
    return make_model(tmp_path / "model")


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


def test_an_empty_name_is_refused():
    with pytest.raises(UsageError, match="the model's name is empty"):
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

    with pytest.raises(
        CheckpointError, match=rf"only pickled weights \({name}\).*never loads.*save_pretrained"
    ):
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
        ("model.gguf", "is no GGUF file: it begins with b''"),
        ("model.safetensors", "is a single file: give its directory"),
        ("model.pt", "is a pickle"),
        ("notes.txt", "is a file: give a checkpoint directory or a GGUF file"),
    ],
)
def test_a_file_is_no_directory(tmp_path, name, message, monkeypatch):
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / name).write_bytes(b"")

    with pytest.raises(CheckpointError, match=message):
        sources.resolve(str(tmp_path / name))


def test_a_directory_of_ggufs(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"holds several GGUF files \(a\.gguf, b\.gguf\): give one"):
        sources.resolve(str(tmp_path))


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    return write_gguf(tmp_path / "models" / "tiny.Q8_0.gguf")


def test_a_gguf_file_opens_through_a_folder_of_the_cache(gguf, tmp_path):
    source = sources.resolve(str(gguf))

    assert source.kind == "local"
    assert source.path.parent == tmp_path / "cache" / "gguf"
    assert (source.path / gguf.name).resolve() == gguf
    assert {"config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"} <= {
        file.name for file in source.path.iterdir()
    }
    assert sources.resolve(str(gguf.parent)).path == source.path  # its folder holds nothing else


def test_the_folder_is_made_once_and_again_when_the_file_changes(gguf, monkeypatch):
    first = sources.resolve(str(gguf)).path
    before = (first / "config.json").stat().st_mtime_ns
    assert sources.resolve(str(gguf)).path == first
    assert (first / "config.json").stat().st_mtime_ns == before
    write_gguf(gguf, num_hidden_layers=2)
    second = sources.resolve(str(gguf)).path
    assert second != first
    assert read_json(second / "config.json")["num_hidden_layers"] == 2


def test_a_damaged_gguf_leaves_nothing_behind(gguf, tmp_path):
    gguf.write_bytes(gguf.read_bytes()[:-9])

    with pytest.raises(CheckpointError, match="truncated or damaged"):
        sources.resolve(str(gguf))
    assert [p.suffix for p in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


def test_a_config_of_another_family_beside_a_gguf(gguf):
    (gguf.parent / "config.json").write_text('{"model_type": "gemma3"}')
    (gguf.parent / "tokenizer.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"is a llama, but the config\.json beside it is of a gemma3"):
        Checkpoint.open(gguf.parent)


def test_an_unwritable_cache_is_named(gguf, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "file"))

    with pytest.raises(ResourceError, match="JUSTRIGHT_CACHE can name another folder"):
        sources.resolve(str(gguf))


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

    with pytest.raises(CheckpointError, match=r"no tokenizer \(tokenizer\.json.*Copy"):
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


def test_the_zoo_that_is_not_installed_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(sources, "entry_points", lambda group: [])
    with pytest.raises(MissingExtraError, match=r"zoo:moe.*pip install packages/justright-zoo"):
        sources.resolve("zoo:moe")


def test_a_broken_provider_is_named(monkeypatch):
    broken = EntryPoint("bad", "no_such_module_here:provider", "justright.models")
    monkeypatch.setattr(sources, "entry_points", lambda group: [broken])

    with pytest.raises(SourceError, match=r"no_such_module_here.*cannot be loaded.*uninstall"):
        sources.resolve("bad:thing")


# --- a fake hub: the tests check the calls, without a server


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Replace the download: ``calls`` collects its arguments, and ``raises`` is raised if set."""

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


# Errors of the hub's client, and the message for each.
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: http_error(hub_errors.GatedRepoError), "is gated: accept.*hf auth login"),
        (
            lambda: http_error(hub_errors.RepositoryNotFoundError),
            "org/name@v1 is neither a directory nor a model on the hub",
        ),
        (lambda: http_error(hub_errors.RevisionNotFoundError), "org/name has no revision 'v1'"),
        (lambda: hub_errors.LocalEntryNotFoundError("x"), "hub cannot be reached.*HTTPS_PROXY"),
        (lambda: hub_errors.OfflineModeIsEnabled("x"), "not in the hub's cache.*offline"),
        (lambda: hub_errors.HFValidationError("bad"), "neither a directory nor a valid hub id"),
        (lambda: ConnectionError("reset by peer\nmore"), r"not be fetched.*\(reset by peer\).*Repeat"),
    ],
)
def test_the_hub_s_errors_say_what_to_do(hub, error, message):
    hub.raises = error()

    with pytest.raises(SourceError, match=message):
        sources.resolve("org/name@v1")


@pytest.fixture
def gguf_hub(hub, monkeypatch, tmp_path):
    """A repository of GGUF files; ``calls`` collects what is fetched."""
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))
    hub.names = [
        "README.md",
        "m-Q4_K_M.gguf",
        "m-Q4_K_S.gguf",
        "m.Q8_0.gguf",
        "sub/other-f16.gguf",
        "mmproj-f16.gguf",
    ]
    snapshot = tmp_path / "hub" / "snapshots" / "4567cdef"

    def fetch(repo, name, **options):
        hub.calls.append((repo, name, options))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        return str(write_gguf(snapshot / name))

    def names(repo, **options):
        if hub.raises is not None:
            raise hub.raises
        return hub.names

    monkeypatch.setattr("huggingface_hub.list_repo_files", names)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return hub


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("q8_0", "m.Q8_0.gguf"),
        ("m-Q4_K_S.gguf", "m-Q4_K_S.gguf"),
        ("sub/other-f16.gguf", "sub/other-f16.gguf"),
    ],
)
def test_one_file_of_a_repository_is_fetched(gguf_hub, asked, name):
    source = sources.resolve(f"org/name@v1:{asked}")

    assert gguf_hub.calls == [("org/name", name, {"revision": "v1"})]
    assert (source.kind, source.revision) == ("hub", "4567cdef")
    assert Checkpoint.open(source.path).files()[0].name == name.rpartition("/")[2]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "Q4_K",
            r"has no GGUF file named 'Q4_K'. Its GGUF files: m-Q4_K_M\.gguf, m-Q4_K_S\.gguf, m\.Q8_0\.gguf, mmproj",
        ),
        ("f16", r"has 2 GGUF files named 'f16'. Its GGUF files: mmproj-f16\.gguf, sub/other-f16\.gguf"),
    ],
)
def test_no_file_or_several_of_a_quantisation(gguf_hub, asked, message):
    with pytest.raises(SourceError, match=message):
        sources.resolve(f"org/name:{asked}")
    assert gguf_hub.calls == []


def test_offline_the_hub_s_cache_is_searched(gguf_hub, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "m-Q4_K_M.gguf").write_bytes(b"")
    gguf_hub.raises = hub_errors.OfflineModeIsEnabled("offline")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(kept))
    sources.resolve("org/name:Q4_K_M")

    assert gguf_hub.calls == [("org/name", "m-Q4_K_M.gguf", {"revision": None})]


def test_a_repository_of_ggufs_alone_lists_them(gguf_hub):
    (gguf_hub.commit / "model.safetensors").unlink()

    with pytest.raises(
        SourceError, match=r"org/name holds GGUF files; give one of them as org/name:NAME. Its GGUF"
    ):
        sources.resolve("org/name")


def test_the_hub_s_errors_hold_for_ggufs_too(gguf_hub):
    gguf_hub.raises = http_error(hub_errors.RepositoryNotFoundError)

    with pytest.raises(SourceError, match="org/name is neither a directory nor a model on the hub"):
        sources.resolve("org/name:Q4_K_M")


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
        "import sys; from justright.checkpoint import sources; sources.available(); "
        f"sources.resolve({str(model_dir)!r}); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
