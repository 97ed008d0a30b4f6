"""The measured process: loads one contender, generates once, and prints its peak memory.

python -m justright.bench.peak_process '{"model": ..., "contender": ..., ...}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from justright.bench.decode import DecodeSetting, open_contenders
from justright.bench.peak_memory import own_peak_bytes
from justright.bench.tasks import build
from justright.checkpoint.tokenizer import load_tokenizer


def _run(job: dict[str, Any]) -> None:
    path = Path(job["model"])
    setting = DecodeSetting(
        contenders=(job["contender"],), tokens=job["tokens"], engine=dict(job["options"]), repeats=1
    )
    task = build(job["kind"], load_tokenizer(path), job["context"])
    [contender] = open_contenders(path, setting).contenders
    contender.run(task.prompt_ids, job["tokens"])
    print(json.dumps({"peak_bytes": own_peak_bytes()}))


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))
