"""Every sequence is drawn once per epoch, for any numbers of sequences, shards, rows and processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from justright.training.batches import Batches
from justright.training.self_generated import DataSetting, SelfGenerated
from justright.training.shard import Shard


def numbered(folder: Path, sequences: int, batch: int) -> SelfGenerated:
    """Shards whose sequence ``i`` has a prompt of ``1 + i % 5`` tokens ``i`` and outputs that are all ``i``."""
    data = SelfGenerated(folder, DataSetting(sequences=sequences, batch=batch), "0", ["texts"])
    data.begin()
    for number, file in enumerate(data.training_files):
        ids = torch.arange(number * batch, min(sequences, (number + 1) * batch))
        lengths = 1 + ids % 5
        prompts = torch.where(torch.arange(int(lengths.max())) < lengths[:, None], ids[:, None], 0)
        teacher = ids[:, None, None].expand(-1, 3, 8)
        Shard(
            prompts,
            lengths,
            ids[:, None].expand(-1, 3),
            torch.full_like(ids, 3),
            ids[:, None, None].expand(-1, 3, 2).bfloat16(),
            teacher,
            teacher.half(),
            ids.float(),
        ).write(file)
    return data


@pytest.mark.parametrize(
    ("sequences", "batch", "rows", "processes"),
    [
        (24, 8, 4, 1),
        (21, 8, 4, 1),
        (9, 8, 2, 1),
        (10, 4, 3, 1),
        (13, 4, 7, 1),
        (5, 4, 8, 1),
        (22, 8, 3, 2),
        (12, 4, 4, 3),
    ],
)
def test_each_sequence_once_an_epoch(
    sequences: int, batch: int, rows: int, processes: int, tmp_path: Path
) -> None:
    data = numbered(tmp_path / "data", sequences, batch)
    readers = [Batches(data, seed=3) for _ in range(processes)]
    epochs = rows * processes  # after this many, a step ends at an epoch's end
    drawn: list[int] = []
    for step in range(sequences):
        for process, reader in enumerate(readers):
            shard = reader.take((step * processes + process) * rows, rows)
            ids = shard.tokens[:, 0].tolist()
            assert len(ids) == rows
            for i, number in enumerate(ids):  # all parts of a sequence are drawn together
                length = int(shard.prompt_lengths[i])
                assert length == 1 + number % 5
                assert shard.prompts[i, :length].tolist() == [number] * length
                assert float(shard.hidden[i, 1, 1]) == float(shard.factors[i]) == number
                assert int(shard.teacher_ids[i, 2, 7]) == number
            drawn += ids
    parts = [drawn[i : i + sequences] for i in range(0, len(drawn), sequences)]
    assert len(parts) == epochs
    for part in parts:
        assert Counter(part) == dict.fromkeys(range(sequences), 1)
    if epochs > 1 and sequences > 5:
        assert parts[0] != parts[1], "each epoch has an order of its own"
    # A run that resumes in the middle draws the same.
    again = Batches(data, seed=3).take(sequences + 1, rows)
    assert again.tokens[:, 0].tolist() == drawn[sequences + 1 : sequences + 1 + rows]
