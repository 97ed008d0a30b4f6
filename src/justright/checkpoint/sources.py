"""Resolve a model (a directory, the Hugging Face hub, or a Python package) to a local directory.

This module imports neither torch nor transformers, so ``justright path`` stays fast.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, cast

from justright.checkpoint.bundle_manifest import Bundle, is_bundle
from justright.checkpoint.reader import no_weights, opened_folder, weights_file
from justright.errors import (
    CheckpointError,
    JustrightError,
    MissingExtraError,
    SourceError,
    UsageError,
    install_command,
)
from justright.files import exists, local_path

ENTRY_POINTS = "justright.models"
# In the hub's patterns * matches slashes, so files in subfolders are excluded again below.
HUB_ALLOW = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "README*"]
HUB_NEVER = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.py", "*.pkl"]
"""Pickles and code: never fetched, even if a bundle's manifest names them."""
HUB_IGNORE = ["*/*.safetensors", "consolidated*.safetensors", *HUB_NEVER]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "vocab.txt",
    "*.tiktoken",
)

_PREFIXED = re.compile(r"([A-Za-z][\w-]+):(.*)", re.DOTALL)  # two letters at least: C:\ is a drive
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@:\s]+))?")
_HUB_GGUF = re.compile(_HUB_ID.pattern + r":(?P<file>[^:\s]+)")


class Provider(Protocol):
    """What an entry point of the group ``justright.models`` refers to; its name is the prefix."""

    def names(self) -> Mapping[str, str]:
        """Return the models on offer: name -> one line of description."""
        ...

    def path(self, name: str, *, progress: bool = True) -> Path:
        """Return the checkpoint directory of ``name``, made at first use."""
        ...


@dataclass(frozen=True)
class Source:
    """A model on this machine.

    Attributes:
        path: The checkpoint directory.
        name: The requested name.
        kind: ``local``, ``hub``, or a provider's prefix such as ``packaged``.
        revision: The hub's commit, None for other kinds.
    """

    path: Path
    name: str
    kind: str
    revision: str | None = None


def resolve(model: str, *, progress: bool = True) -> Source:
    """Find a model, and fetch or convert it where needed.

    Args:
        model: An existing directory or GGUF file, ``PREFIX:NAME`` (a model in a Python package), or a hub id
            ``org/name`` or ``org/name@revision``, for a GGUF file with its quantisation or name (``org/name:Q4_K_M``).
            A directory goes before a hub id of the same spelling.
        progress: Show progress on stderr.

    Raises:
        UsageError: The name is empty.
        SourceError: No model has this name, or the hub cannot be reached.
        CheckpointError: The result is not a checkpoint that justright can load.
        UnsupportedModelError: A GGUF file of a family or type that is not supported.
        MissingExtraError: A package is missing; the message has the install command.
    """
    if not model.strip():
        raise UsageError("the model's name is empty: give a directory, PREFIX:NAME or a hub id org/name")
    local = local_path(model)
    if exists(local):
        return Source(_check_directory(opened_folder(local.resolve())), model, "local")
    if match := _PREFIXED.fullmatch(model):
        prefix, name = match.groups()
        return Source(_check_directory(_packaged(prefix, name, progress)), model, prefix)
    if model.startswith((".", "~")):
        raise _nothing_found(model)
    if match := _HUB_GGUF.fullmatch(model):
        file, commit = _download_gguf(match["repo"], match["revision"], match["file"], progress)
        return Source(opened_folder(file), model, "hub", revision=commit)
    if match := _HUB_ID.fullmatch(model):
        path = _download(match["repo"], match["revision"], progress)
        if weights_file(path) is None and (ggufs := _ggufs_on_hub(match["repo"], path.name)):
            raise SourceError(f"{model} holds GGUF files; give one of them as {model}:NAME. {_listed(ggufs)}")
        return Source(_check_directory(path), model, "hub", revision=path.name)
    raise _nothing_found(model)


def resolve_adapter(adapter: str, *, progress: bool = True) -> Path:
    """Find a PEFT adapter: a directory, or a hub id ``org/name`` or ``org/name@revision``, fetched where needed.

    Raises:
        UsageError: The input is neither, or is a directory without ``adapter_config.json``.
        SourceError: The hub does not have it, or cannot be reached.
    """
    make = "Make one with `justright switch extract SLOW FAST -o DIR`"
    local = _resolve_part("adapter", adapter, make, progress)
    if not (local / "adapter_config.json").is_file():
        what = "a checkpoint, not an adapter" if (local / "config.json").is_file() else "not an adapter"
        raise UsageError(f"{local} is {what}: it has no adapter_config.json. {make}")
    return local


def resolve_drafter(drafter: str) -> Path:
    """Find a trained drafter: a directory, or a hub id ``org/name`` or ``org/name@revision``, fetched where needed.

    Raises:
        UsageError: The input is neither.
        SourceError: The hub does not have it, or cannot be reached.
    """
    make = "Make one with `justright draft train MODEL -o DIR`"
    return _resolve_part("drafter", drafter, make, progress=True)


def _resolve_part(kind: str, name: str, make: str, progress: bool) -> Path:
    local = local_path(name)
    if exists(local):
        return local
    match = _HUB_ID.fullmatch(name)
    if match is None or name.startswith((".", "~")):
        raise UsageError(f"no {kind} {name!r}: it is neither a directory nor a hub id org/name. {make}")
    return _download(match["repo"], match["revision"], progress)


def available() -> dict[str, str]:
    """Return the models in installed packages: ``PREFIX:NAME`` -> description.

    Raises:
        SourceError: A provider cannot be loaded.
    """
    return {
        f"{point.name}:{name}": description
        for point in entry_points(group=ENTRY_POINTS)
        for name, description in _load(point).names().items()
    }


def check_tokenizer_files(path: Path) -> None:
    """Check that a checkpoint directory has a tokenizer, before anything expensive.

    Raises:
        CheckpointError: The tokenizer is missing.
    """
    has_bpe = (path / "vocab.json").exists() and (path / "merges.txt").exists()
    if not has_bpe and not any(next(path.glob(pattern), None) for pattern in TOKENIZER_FILES):
        raise CheckpointError(
            f"{path} has no tokenizer ({', '.join(TOKENIZER_FILES)}, or vocab.json with merges.txt). Copy the "
            "tokenizer's files from the model's original repository"
        )


def _check_directory(path: Path) -> Path:
    """Check cheaply that ``path`` is a checkpoint directory: its config and safetensors weights are there."""
    if path.is_file():
        raise _not_a_directory(path)
    if weights_file(path) is None:
        raise no_weights(path)
    if not (path / "config.json").exists():
        raise CheckpointError(
            f"{path} has no config.json, which a checkpoint needs: copy it from the model's original repository"
        )
    return path


def _not_a_directory(path: Path) -> CheckpointError:
    if path.suffix == ".safetensors":
        return CheckpointError(f"{path} is a single file: give its directory, {path.parent}")
    if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}:
        return CheckpointError(
            f"{path} is a pickle, which justright never loads, because it can run any code: give a safetensors "
            "directory"
        )
    return CheckpointError(f"{path} is a file: give a checkpoint directory or a GGUF file")


def _packaged(prefix: str, name: str, progress: bool) -> Path:
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if prefix == "zoo" and prefix not in points:
        raise MissingExtraError(
            f"zoo:{name} is a model of the package justright-zoo, which is not installed; "
            f"{install_command(folder='packages/justright-zoo')}"
        )
    if prefix not in points:
        known = ", ".join(f"{known}:NAME" for known in sorted(points)) or "none is installed"
        raise SourceError(
            f"unknown prefix {prefix!r} in {prefix}:{name}; available: {known}. Write a hub id as org/name, and a "
            "directory with a colon as ./DIR"
        )
    provider = _load(points[prefix])
    if name not in provider.names():
        offered = "".join(f"\n  {prefix}:{known}  {text}" for known, text in provider.names().items())
        raise SourceError(f"{prefix} has no model {name!r}. Its models:{offered or ' none'}")
    return provider.path(name, progress=progress)


def _load(point: EntryPoint) -> Provider:
    try:
        return cast(Provider, point.load())
    except JustrightError:
        raise
    except Exception as error:
        package = point.dist.name if point.dist else point.value
        raise SourceError(
            f"the package {package}, which provides {point.name}:NAME, cannot be loaded ({error!r}): update or "
            "uninstall it"
        ) from error


def _nothing_found(model: str) -> SourceError:
    offered = available()
    close = difflib.get_close_matches(model, [*offered, *(key.split(":")[1] for key in offered)], n=1)
    hint = next((key for key in offered if close and key.endswith(close[0])), None)
    lines = "".join(f"\n  {key}  {text}" for key, text in offered.items())
    return SourceError(
        f"no model {model!r}: it is neither a directory, nor a hub id org/name, nor PREFIX:NAME (package)."
        f"{f' Did you mean {hint}?' if hint else ''} Models of installed packages:{lines or ' none'}"
    )


def _download(repo: str, revision: str | None, progress: bool) -> Path:
    import huggingface_hub

    with _hub_errors(repo, revision), _hub_progress(progress):
        path = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=HUB_ALLOW,
            ignore_patterns=HUB_IGNORE,
        )
        if is_bundle(Path(path)):  # all files that it names, from the same commit
            huggingface_hub.snapshot_download(
                repo,
                revision=Path(path).name,
                allow_patterns=[glob.escape(name) for name in Bundle.open(Path(path)).files],
                ignore_patterns=HUB_NEVER,
            )
    return Path(path)


def _download_gguf(repo: str, revision: str | None, wanted: str, progress: bool) -> tuple[Path, str]:
    """Fetch the one GGUF file with this name or quantisation; return it and its commit."""
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    with _hub_errors(repo, revision), _hub_progress(progress):
        try:
            names = huggingface_hub.list_repo_files(repo, revision=revision)
        except errors.HfHubHTTPError:  # the hub's answer
            raise
        except (OSError, httpx.TransportError):  # offline: what its cache holds
            kept = Path(huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True))
            names = [file.relative_to(kept).as_posix() for file in kept.rglob("*.gguf")]
        ggufs = [name for name in names if name.endswith(".gguf")]
        found = [name for name in ggufs if _is_named(name, wanted)]
        if len(found) != 1:
            what = "no GGUF file" if not found else f"{len(found)} GGUF files"
            raise SourceError(f"{repo} has {what} named {wanted!r}. {_listed(found or ggufs)}")
        file = Path(huggingface_hub.hf_hub_download(repo, found[0], revision=revision))
    return file, file.parents[found[0].count("/")].name


def _ggufs_on_hub(repo: str, revision: str) -> list[str]:
    """The GGUF files of a repository; none if the hub cannot be reached."""
    import huggingface_hub

    try:
        names = huggingface_hub.list_repo_files(repo, revision=revision)
    except Exception:  # the caller has a message of its own
        return []
    return [name for name in names if name.endswith(".gguf")]


def _is_named(file: str, wanted: str) -> bool:
    """Whether a GGUF file has a name, or a quantisation as a word of its name: ``Q4_K`` is none of ``Q4_K_M``."""
    word = rf"(?<!\w){re.escape(wanted)}(?!\w)"
    return file == wanted or re.search(word, Path(file).stem, re.IGNORECASE) is not None


def _listed(ggufs: list[str]) -> str:
    return f"Its GGUF files: {', '.join(sorted(ggufs)) or 'none'}"


@contextlib.contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Raise the hub's errors as `SourceError`, with what to do."""
    from huggingface_hub import errors

    where = f"{repo}{f'@{revision}' if revision else ''}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{where} is gated: accept its terms at https://huggingface.co/{repo}, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"{where} is neither a directory nor a model on the hub. Check the spelling; for a private model run "
            "`hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{repo} has no revision {revision!r}: give a branch, a tag or a commit") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{repo!r} is neither a directory nor a valid hub id: {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise SourceError(
            f"{where} is not in the hub's cache, and this run is offline: run once online to fetch it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise SourceError(
            f"{where} is neither a directory nor in the hub's cache, and the hub cannot be reached. Check the network "
            "(HF_ENDPOINT and HTTPS_PROXY apply), or give a local directory"
        ) from error
    except OSError as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(
            f"{where} could not be fetched from the hub ({line}). Repeat the command: it keeps the files already "
            "fetched"
        ) from error


@contextlib.contextmanager
def _hub_progress(shown: bool) -> Iterator[None]:
    """Disable the hub's progress bars on request; otherwise keep the user's own setting."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
