"""The folder of a GGUF file: what its header says, as the files of a checkpoint, beside a link to it.

All of justright reads a model's config, tokenizer and templates from its folder. Making them takes seconds for a large
vocabulary, so they are kept in the user's cache. The weights are not copied.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from justright.checkpoint.gguf_family import config_of, family_of, special_ids
from justright.checkpoint.gguf_file import GgufFile, Strings
from justright.checkpoint.gguf_tensors import GgufTensors
from justright.checkpoint.gguf_tokenizer import tokenizer_of, unknown_split
from justright.errors import CheckpointError, ResourceError
from justright.files import cache_folder, cannot_write

VERSION = 1  # increase when the files change, so that those in the cache are made again
_LONGEST_STEM = 80
_ENDS = ("eos", "eot", "eom")
Prepare = Callable[[Path], None]


def gguf_folder(file: Path, prepare: Prepare | None = None) -> Path:
    """The folder of a GGUF file, made at first use: a checkpoint directory whose weights are a link to the file.

    It is made again when the file changes. Concurrent calls from two processes are safe: one makes it.

    Args:
        file: The file.
        prepare: Called with the new folder before anything is made; checks the file, or adds files of its own.

    Raises:
        CheckpointError: The file is missing or damaged.
        UnsupportedModelError: Its family, tokenizer or types are not supported.
        ResourceError: The cache cannot be written.
    """
    file = Path(os.path.abspath(file))  # not resolved: the hub's cache links names to hashes
    try:
        stat = file.stat()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    identity = json.dumps([str(file), stat.st_size, stat.st_mtime_ns, VERSION])
    name = f"{file.stem[:_LONGEST_STEM]}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    folder = cache_folder() / "gguf" / name
    if not (folder / file.name).exists():
        try:
            _make_once(file, folder, prepare)
        except OSError as error:
            raise cannot_write(error) or ResourceError(
                f"{folder} cannot be written ({error}): JUSTRIGHT_CACHE can name another folder"
            ) from error
    if (note := unknown_split(GgufFile.open(file))) is not None:
        warnings.warn(note, stacklevel=2)
    return folder


def only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that has exactly one; None otherwise."""
    found = sorted(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


def _make_once(file: Path, folder: Path, prepare: Prepare | None) -> None:
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if (folder / file.name).exists():
            return
        partial = folder.with_name(folder.name + ".partial")
        for old in (partial, folder):  # of a killed process; or its link leads nowhere
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir()
        try:
            if prepare is not None:
                prepare(partial)
            write_companions(GgufFile.open(file), partial)
            _link(file, partial / file.name)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_companions(file: GgufFile, folder: Path) -> None:
    """Write the files that a checkpoint has beside its weights.

    Raises:
        CheckpointError: The file is damaged.
        UnsupportedModelError: Its family, tokenizer or types are not supported.
    """
    GgufTensors(file)  # checks every tensor's name
    config = config_of(file)
    tokenizer = tokenizer_of(file)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tokens = {f"{name}_token": tokenizer.id_to_token(token) for name, token in special_ids(file).items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        **tokens,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    ids = {f"{name}_token_id": token for name, token in special_ids(file).items() if name in ("bos", "pad")}
    _write_json(folder / "generation_config.json", {**ids, "eos_token_id": _ends(file)})
    template = file.text("tokenizer.chat_template")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(folder / "config.json", config)


def _ends(file: GgufFile) -> int | list[int] | None:
    """The tokens that end an answer: the header's, and the family's where they are control tokens."""
    values, tokens = file.values, file.values["tokenizer.ggml.tokens"]
    kinds = values["tokenizer.ggml.token_type"]
    assert isinstance(tokens, Strings)
    named = [values.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS]
    found = [token for token in named if type(token) is int and 0 <= token < len(tokens)]
    family = family_of(file)
    found += [i for i, token in enumerate(tokens) if kinds[i] == 3 and token in family.ends]
    unique = list(dict.fromkeys(found))
    return unique if len(unique) > 1 else next(iter(unique), None)


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file)
    except OSError:  # Windows without the privilege
        os.link(file, link)


def _write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
