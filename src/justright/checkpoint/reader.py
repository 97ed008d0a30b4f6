"""Read checkpoints lazily, of safetensors or one GGUF file: headers first, then one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from justright.architectures.spec import ModelSpec
from justright.checkpoint import sparse
from justright.checkpoint.format import DTYPES, INDEX, SINGLE, Header, TensorInfo, damaged, read_header
from justright.checkpoint.gguf_folder import gguf_folder, only_gguf
from justright.checkpoint.gguf_tensors import GgufTensors, open_gguf
from justright.checkpoint.tensor_names import canonical_names
from justright.errors import CheckpointError, UnsupportedModelError
from justright.files import exists

if TYPE_CHECKING:
    import torch

    from justright.kernels.quantised import Blocks

_CHUNK_BYTES = 2**20
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """A checkpoint directory, or one safetensors or GGUF file, read one tensor at a time.

    Life cycle: :meth:`open` reads and validates only the headers. :meth:`tensor` maps the tensor's shard into
    memory at first use and keeps it mapped until :meth:`close` (or the end of the ``with`` block). Files are
    never written. Returned tensors stay valid after closing. Tensors of a sparse container
    (`justright.checkpoint.sparse`) are unpacked on reading. All names are those of the architecture table, even
    if the files use other names that transformers loads (`justright.checkpoint.tensor_names`). Tensors of a GGUF file
    are dequantised on reading (`justright.checkpoint.gguf_tensors`); :meth:`blocks` gives them as they lie in the file.

    Attributes:
        packed: Names of the tensors that are stored sparsely.
        gguf: The tensors of a GGUF file; None for safetensors.
    """

    def __init__(self, path: Path, headers: dict[Path, Header], gguf: GgufTensors | None = None) -> None:
        self.path = path
        self.gguf = gguf
        self._config: dict[str, Any] | None = None
        if gguf is not None:
            self._infos, self.packed = gguf.infos, frozenset[str]()
            return
        self._stored = {info.name: info for header in headers.values() for info in header.tensors}
        self._infos, self.packed = self._stored, frozenset[str]()
        if any(file.name.startswith(sparse.SINGLE.removesuffix(".safetensors")) for file in headers):
            self._infos, self.packed = sparse.tensor_infos(self._stored)
        else:
            names = canonical_names(self._stored, self._known_config(), path)
            self._infos = {name: self._stored[stored] for name, stored in names.items()}
        self._headers = headers
        self._open: dict[Path, Any] = {}

    @classmethod
    def open(cls, path: Path | str | Checkpoint) -> Checkpoint:
        """Open a checkpoint directory (or a single ``.safetensors`` or ``.gguf`` file) and check every header.

        A ``.gguf`` file is opened through the folder that `gguf_folder` makes for it.

        A checkpoint that is open already is returned as it is, so that functions take either.

        Raises:
            CheckpointError: Weights are missing, truncated, corrupt, duplicated, at odds with the index,
                or of another kind of file. The message says which file and what to do.
            UnsupportedModelError: A GGUF file of a family or type that is not supported.
        """
        if isinstance(path, Checkpoint):
            return path
        path = Path(path)
        index: dict[str, str] = {}
        path = opened_folder(path)
        if path.is_file():
            files = [path]
        elif (found := weights_file(path)) is None:
            raise no_weights(path)
        elif found.suffix == ".gguf":
            return cls(path, {}, _same_family(path, open_gguf(found)))
        elif found.suffix == ".json":
            index = _read_index(found)
            files = [path / name for name in sorted(set(index.values()))]
            _check_shards_exist(path, files)
        else:
            files = [found]
        headers = {file: read_header(file) for file in files}
        _check_duplicates(headers)
        _check_index(path, index, headers)
        return cls(path, headers)

    def _known_config(self) -> dict[str, Any]:
        """Return the config, or an empty one if it cannot be read; a later access of `config` raises the error."""
        try:
            return self.config
        except CheckpointError:
            return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def close(self) -> None:
        """Drop the mapped shards; may be called twice."""
        if self.gguf is None:
            self._open.clear()

    def files(self) -> tuple[Path, ...]:
        """Return the files of the weights."""
        return tuple(self._headers) if self.gguf is None else (self.gguf.file.path,)

    def info(self, name: str) -> TensorInfo:
        """Return the header entry of ``name``.

        Raises:
            CheckpointError: The checkpoint has no such tensor.
        """
        try:
            return self._infos[name]
        except KeyError:
            close = [known for known in self._infos if known.endswith(name.rsplit(".", 2)[-1])][:3]
            raise CheckpointError(
                f"{self.path} has no tensor {name!r} among its {len(self._infos)}; similar: {close or 'none'}"
            ) from None

    def stored_as(self, name: str) -> str:
        """Return the type of a tensor's values in the files: a dtype of safetensors, or a type of GGUF (``Q4_K``)."""
        return self.dtype(name) if self.gguf is None else self.gguf.stored_as(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the tensor's shape, without reading it."""
        return self.info(name).shape

    def dtype(self, name: str) -> str:
        """Return the dtype's safetensors name (``F32``, ``BF16``, ...), without reading the tensor."""
        return self.info(name).dtype

    def tensor(self, name: str, *, copy: bool = False) -> torch.Tensor:
        """Return one tensor on the CPU; its pages are read from disk on first access.

        Args:
            name: One of :meth:`names`.
            copy: False: the tensor shares this process's mapping of the file, so an in-place change affects later
                reads of ``name`` (never the file). True: the caller owns the tensor and no page of the file is
                mapped, so deleting the tensor frees its memory.

        Raises:
            CheckpointError: There is no such tensor, or it cannot be read.
            UnsupportedModelError: Its dtype has no counterpart in torch.
        """
        info = self.info(name)
        if self.gguf is not None:
            return self.gguf.tensor(name)
        if name in self.packed:
            values, bitmask = (self._copy(self._stored[name + p]) for p in (sparse.VALUES, sparse.BITMASK))
            return sparse.unpack(values, bitmask, info.shape, f"{name} in {info.file}")
        return self._copy(info) if copy else self._read(info)

    @property
    def has_blocks(self) -> bool:
        """Whether some tensors are stored in quantised blocks."""
        return self.gguf is not None and self.gguf.has_blocks

    def blocks(self, name: str) -> Blocks | None:
        """Return a matrix in its quantised blocks; None if the files hold plain values.

        Raises:
            CheckpointError: There is no such tensor.
        """
        self.info(name)
        return None if self.gguf is None else self.gguf.blocks(name)

    def ends(self, name: str, nbytes: int) -> tuple[bytes, bytes]:
        """Return the first and the last ``nbytes`` of a tensor's values; all of it, if it has fewer.

        Raises:
            CheckpointError: As `tensor`.
        """
        if self.gguf is not None:
            return self.gguf.ends(name, nbytes)
        import torch

        flat = self.tensor(name).contiguous().view(-1).view(torch.uint8)
        return flat[:nbytes].numpy().tobytes(), flat[-nbytes:].numpy().tobytes()

    def _copy(self, info: TensorInfo) -> torch.Tensor:
        """Read one stored tensor into newly allocated memory."""
        import torch

        tensor = torch.empty(info.shape, dtype=getattr(torch, _torch_name(info)))
        if not info.nbytes:
            return tensor
        try:
            with info.file.open("rb") as stream:
                stream.seek(self._headers[info.file].begin + info.start)
                count = stream.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise damaged(info.file, f"{info.name} cannot be read ({error})") from error
        if count != info.nbytes:
            raise damaged(info.file, f"only {count} of the {info.nbytes} bytes of {info.name} can be read")
        return tensor

    def _read(self, info: TensorInfo) -> torch.Tensor:
        """Read one stored tensor from the mapped file."""
        name = info.name  # in the file, which may differ from the table's
        _torch_name(info)
        from safetensors import SafetensorError, safe_open

        try:
            file = self._open.get(info.file)  # local reference: another thread may call close
            if file is None:
                file = self._open[info.file] = safe_open(info.file, framework="pt", device="cpu")
            tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise damaged(info.file, f"{name} cannot be read ({error})") from error
        return tensor

    def plain_bytes(self, name: str) -> int:
        """Return the tensor's bytes in memory; they equal those on disk unless it is packed."""
        info = self.info(name)
        return math.prod(info.shape) * DTYPES[info.dtype][1] // 8

    @property
    def nbytes(self) -> int:
        """The size of all tensors on disk."""
        return sum(info.nbytes for info in self._infos.values())

    @property
    def config(self) -> dict[str, Any]:
        """A copy of the content of ``config.json``.

        Raises:
            CheckpointError: It is missing or not a JSON object.
        """
        if self._config is None:
            folder = self.path if self.path.is_dir() else self.path.parent
            self._config = read_json(folder / "config.json")
        return dict(self._config)

    @cached_property
    def spec(self) -> ModelSpec:
        """What the model is, by ``config.json``; the first use imports transformers.

        Raises:
            CheckpointError: ``config.json`` is missing or invalid.
            UnsupportedModelError: See `ModelSpec.of`.
        """
        return ModelSpec.of(self.config)


def opened_folder(path: Path) -> Path:
    """The folder that a path is opened through: `gguf_folder` of a GGUF file, or of the only one in a folder of that.

    Raises:
        CheckpointError: As `gguf_folder`.
        UnsupportedModelError: As `gguf_folder`.
        ResourceError: As `gguf_folder`.
    """
    if path.is_file():
        return gguf_folder(path) if path.suffix == ".gguf" else path
    file = weights_file(path)
    whole = (path / "config.json").exists() and (path / "tokenizer.json").exists()
    return path if whole or file is None or file.suffix != ".gguf" else gguf_folder(file)


def weights_file(path: Path) -> Path | None:
    """Return the single weights file of a checkpoint directory, or the index of its shards; None if neither exists."""
    names = (SINGLE, INDEX, sparse.SINGLE, sparse.INDEX)
    return next((path / name for name in names if (path / name).exists()), None) or only_gguf(path)


def _same_family(path: Path, gguf: GgufTensors) -> GgufTensors:
    found = read_json(path / "config.json").get("model_type")
    if found != gguf.family.model_type:
        raise CheckpointError(
            f"{gguf.file.path} is a {gguf.family.model_type}, but the config.json beside it is of a {found}. Give the "
            "file alone in a folder, so that its own header counts"
        )
    return gguf


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object that is part of a checkpoint.

    Raises:
        CheckpointError: It is missing or not a JSON object.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file.parent} has no {file.name}, which a checkpoint needs: copy it from the model's original "
            "repository"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not readable JSON ({error}): fetch the file again") from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{file} holds a JSON {type(data).__name__}; allowed: an object. Fetch the file again"
        )
    return data


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


def _torch_name(info: TensorInfo) -> str:
    """The tensor's dtype as torch names it.

    Raises:
        UnsupportedModelError: torch has none.
    """
    name = DTYPES[info.dtype][0]
    if name is None:
        raise UnsupportedModelError(
            f"{info.name} in {info.file} has dtype {info.dtype}, which torch does not have: give a checkpoint in "
            "another dtype"
        )
    return name


def _read_index(file: Path) -> dict[str, str]:
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file} has no weight_map: fetch the file again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard:
            raise CheckpointError(f"{file} names the shard {shard!r}; allowed: files in the same folder")
    return weight_map


def _check_shards_exist(path: Path, files: list[Path]) -> None:
    missing = [file.name for file in files if not exists(file)]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of its {len(files)} shards: {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}. Fetch them again, for example with `hf download`"
        )


def _check_duplicates(headers: dict[Path, Header]) -> None:
    """Validate that a tensor stored in two shards is the same in both, bit for bit."""
    seen: dict[str, tuple[TensorInfo, int]] = {}
    for file, header in headers.items():
        begin = file.stat().st_size - max((info.end for info in header.tensors), default=0)
        for info in header.tensors:
            if info.name in seen and not _equal(seen[info.name], (info, begin)):
                both = f"{seen[info.name][0].file.name} and {file.name}"
                raise CheckpointError(
                    f"{both} in {file.parent} hold different values of the tensor {info.name}: shards of two versions "
                    "are mixed. Fetch the checkpoint again into an empty directory"
                )
            seen[info.name] = info, begin


def _equal(one: tuple[TensorInfo, int], other: tuple[TensorInfo, int]) -> bool:
    """Whether two tensors, each given with the data offset of its file, are equal."""
    (a, a_begin), (b, b_begin) = one, other
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with a.file.open("rb") as left, b.file.open("rb") as right:
        left.seek(a_begin + a.start)
        right.seek(b_begin + b.start)
        rest = a.nbytes
        while rest:
            size = min(rest, _CHUNK_BYTES)
            if left.read(size) != right.read(size):
                return False
            rest -= size
    return True


def _check_index(path: Path, index: dict[str, str], headers: dict[Path, Header]) -> None:
    inside = {file.name: {info.name for info in header.tensors} for file, header in headers.items()}
    wrong = [(name, shard) for name, shard in index.items() if name not in inside[shard]]
    if wrong:
        name, shard = wrong[0]
        raise CheckpointError(
            f"{path / INDEX} lists {len(wrong)} tensors that their shards do not hold, such as {name} in {shard}: the "
            "index and the shards are of two versions. Fetch the checkpoint again into an empty directory"
        )
