"""Which file of a checkpoint directory holds its weights, and what to say where none does."""

from __future__ import annotations

from pathlib import Path

from justright.checkpoint import sparse
from justright.checkpoint.format import INDEX, SINGLE
from justright.checkpoint.gguf_folder import only_gguf
from justright.errors import CheckpointError

PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def weights_file(path: Path) -> Path | None:
    """Return the single weights file of a checkpoint directory, or the index of its shards; None if neither exists."""
    names = (SINGLE, INDEX, sparse.SINGLE, sparse.INDEX)
    return next((path / name for name in names if (path / name).exists()), None) or only_gguf(path)


def no_weights(path: Path) -> CheckpointError:
    """Return the error for a directory without ``model.safetensors``; it names the files found instead."""
    if not path.is_dir():
        return CheckpointError(f"{path} does not exist: give a checkpoint directory")
    pickles = sorted(file.name for pattern in PICKLE_PATTERNS for file in path.glob(pattern))
    ggufs = sorted(file.name for file in path.glob("*.gguf"))
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if (path / "adapter_config.json").exists():
        return CheckpointError(f"{path} is an adapter, not a model: give the directory of its base model")
    if others:
        return CheckpointError(
            f"{path} has {', '.join(others[:4])} but neither {SINGLE} nor {INDEX}. Rename a single file to {SINGLE}; "
            f"for several files, fetch their {INDEX}"
        )
    if pickles:
        return CheckpointError(
            f"{path} holds only pickled weights ({', '.join(pickles[:4])}), which justright never loads, because "
            "loading a pickle can run any code. Use a safetensors revision of the model, or, if you trust the files, "
            "convert them with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR) and "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    if ggufs:
        return CheckpointError(
            f"{path} holds several GGUF files ({', '.join(ggufs[:8])}): give one of them by its whole path"
        )
    return CheckpointError(
        f"{path} holds no weights: expected {SINGLE}, {INDEX} with its shards, or one GGUF file"
    )
