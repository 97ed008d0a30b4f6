"""A checkpoint on disk: read lazily by :class:`Checkpoint`, written safely by :class:`CheckpointWriter`."""

from justright.models.reading import Checkpoint, Header, TensorInfo, read_header
from justright.models.writing import CheckpointWriter

__all__ = ["Checkpoint", "CheckpointWriter", "Header", "TensorInfo", "read_header"]
