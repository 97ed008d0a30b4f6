"""Where to find trained drafters: in a directory, on the hub, or in a package that carries one for a model."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from justright.architectures.spec import ModelSpec
from justright.checkpoint.bundle_manifest import bundled_part, is_bundle
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.finite import check_finite, load_tensors
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.sources import resolve, resolve_drafter
from justright.errors import CheckpointError, SourceError, UsageError
from justright.files import local_path, save_tensors
from justright.kernels.embedding import QuantisedEmbedding

FORMAT = "justright-drafter-1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
C = TypeVar("C")
KINDS = ("lstm", "attention")
CARRIED = "justright.trained_drafters"
"""Entry-point group: a callable that returns ``{identity of a verifier's weights: {kind: folder}}``."""


def find_drafter(
    path: str | None, identity: str | None, kind: str = "lstm", model: Path | None = None
) -> Path:
    """The folder of a drafter.

    Args:
        path: a directory or a hub id; None: the bundle's own, if ``model`` is one with a drafter of this
            kind, else one that a package carries for the model with this identity.
        identity: of the verifier's weights.
        kind: of drafter.
        model: the verifier's directory.

    Raises:
        SourceError: there is none.
    """
    if path is not None:
        return resolve_drafter(path)
    own = bundled_part(model, "draft")
    if own is not None and read_about(own)["kind"] == kind:
        return own
    for point in sorted(entry_points(group=CARRIED), key=lambda point: point.value):
        carried: dict[str, dict[str, Path]] = point.load()()
        if identity in carried and kind in carried[identity]:
            return carried[identity][kind]
    cell = " --cell attention" if kind == "attention" else ""
    raise SourceError(
        f"no installed package has a trained {kind} drafter for this model. Train one (justright draft train MODEL "
        f"-o DRAFTER{cell}) and give --draft-option path=DRAFTER, or use --draft suffix, which needs no training"
    )


def named_drafter(name: str) -> Path:
    """The folder of a drafter by its own name, or by its model's: a bundle, ``packaged:NAME``, ``zoo:NAME``.

    Raises:
        UsageError: nothing has that name.
        SourceError: that model has no local drafter.
    """
    if ":" not in name and not is_bundle(local_path(name)):
        return resolve_drafter(name)
    model = resolve(name).path
    return bundled_part(model, "draft") or find_drafter(None, weights_identity(model), model=model)


def drafter_at_hand(model: Path) -> bool:
    """Whether the bundle ``model``, or an installed package for this checkpoint, has a trained drafter."""
    try:
        find_drafter(None, weights_identity(model), model=model)
    except SourceError:
        return False
    return True


def read_about(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """A drafter's ``config.json``: shape, accuracy, training. ``kind``: the expected kind.

    Raises:
        CheckpointError: there is none, or it is not a drafter's.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"{folder} is not a drafter: it has no {CONFIG}. Create a drafter with `justright draft train`"
        )
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        form, found = data.get("format"), data.get("kind")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a drafter's config: {error}") from error
    if form != FORMAT or found not in ((kind,) if kind else KINDS):
        raise CheckpointError(
            f"{file} has format {form!r} and kind {found!r}; allowed for a drafter: {FORMAT} and "
            f"{kind or ' or '.join(KINDS)}"
        )
    return data


def check_draft_vocab(draft_vocab: int, vocab_size: int) -> None:
    """Check the number of tokens in a drafter's head.

    Raises:
        UsageError: it is not from 0 (all) to ``vocab_size``.
    """
    if not 0 <= draft_vocab <= vocab_size:
        raise UsageError(
            f"drafter: draft_vocab is {draft_vocab}; allowed: 1 to the verifier's {vocab_size}, or 0: all"
        )


def read_config(folder: Path, kind: str, config: type[C]) -> C:
    """The shape of the drafter in ``folder``, from the fields of ``config`` in its file.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    about = read_about(folder, kind)
    try:
        return config(**{field.name: about[field.name] for field in fields(config)})  # type: ignore[arg-type]  # a dataclass
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not a drafter's config: {error}") from error


def read_for(folder: Path, identity: str | None, kind: str) -> dict[str, Any]:
    """`read_about` a drafter, validated for the weights ``identity`` (None: not checked).

    Raises:
        UsageError: it was trained for other weights.
        CheckpointError: no drafter, or a damaged one.
    """
    about = read_about(folder, kind)
    if identity is not None and about.get("verifier") != identity:
        raise UsageError(
            f"the drafter in {folder} was trained for a model with the identity {about.get('verifier')}, but this one "
            f"has {identity}. Train one for this model: justright draft train MODEL -o DRAFTER"
        )
    return about


def write_drafter(
    folder: Path,
    kind: str,
    model: nn.Module,
    about: dict[str, Any],
    vocab: Tensor | None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a drafter's own parameters (in ``dtype``), its vocabulary (int32) and ``config.json`` into ``folder``.

    Raises:
        CheckpointError: a parameter is not finite; nothing is written.
    """
    tensors = {name: p.detach().to(dtype).cpu().contiguous() for name, p in model.named_parameters()}
    check_finite(tensors, folder / WEIGHTS)
    folder.mkdir(parents=True, exist_ok=True)
    if vocab is not None:
        tensors["vocab"] = vocab.int().cpu()
    save_tensors(tensors, folder / WEIGHTS)
    text = json.dumps({"format": FORMAT, "kind": kind, **about}, indent=1) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def read_tensors(folder: Path, draft_vocab: int, vocab_size: int) -> tuple[dict[str, Tensor], Tensor | None]:
    """A drafter's parameters in float32, and the token ids that its head covers (None: all).

    Args:
        folder: the drafter's.
        draft_vocab: number of these token ids in its config; 0: all.
        vocab_size: of the verifier.

    Raises:
        CheckpointError: files that are missing or damaged, values that are not finite, or a vocabulary that does not
            match the config.
    """
    file = folder / WEIGHTS
    tensors = {name: t if name == "vocab" else t.float() for name, t in load_tensors(file).items()}
    vocab = tensors.pop("vocab", None)
    if draft_vocab and (vocab is None or len(vocab) != draft_vocab):
        raise CheckpointError(f"{file} does not contain the draft vocabulary of its {CONFIG}")
    if vocab is not None and not (int(vocab.min()) >= 0 and int(vocab.max()) < vocab_size):
        raise CheckpointError(f"{file}: the draft vocabulary has token ids outside the model's vocabulary")
    return tensors, vocab


def fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load a drafter's parameters into its module, ready to draft.

    Raises:
        CheckpointError: tensors with other names or shapes.
    """
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))
        raise CheckpointError(f"{folder / WEIGHTS} does not match its {CONFIG}: {odd[0]}")
    model.load_state_dict(tensors)
    model.eval().requires_grad_(False)


def verifier_matrices(model: PreTrainedModel, path: Path | None) -> tuple[Tensor, Tensor]:
    """A verifier's input embedding and output matrix, ``[vocab, hidden_size]`` each.

    If the engine holds the output matrix in a packed form only, it is read from the checkpoint; an embedding in
    quantised blocks is expanded.
    """
    table = model.get_input_embeddings()
    quantised = isinstance(table, QuantisedEmbedding)
    embedding = table.blocks.dequantise() if quantised else table.weight.detach()
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if weight is not None:
        return embedding, weight.detach()
    spec = ModelSpec.of(model.config)
    if path is None or spec.tied:
        return embedding, embedding
    with Checkpoint.open(path) as checkpoint:
        return embedding, checkpoint.tensor(spec.architecture.disk.head).to(embedding)
