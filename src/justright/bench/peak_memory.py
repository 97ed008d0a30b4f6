"""The peak memory of one contender, measured in a separate process (`peak_process`).

Loading is included: a contender that holds the weights twice while it packs them needs that memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from justright.errors import JustrightError


def peak_bytes(
    model: Path, contender: str, kind: str, context: int, tokens: int, options: dict[str, Any]
) -> int:
    """Peak resident memory of loading a model and generating once, in a fresh process.

    Args:
        model: checkpoint directory.
        contender: its name.
        kind: the task.
        context: its length.
        tokens: to generate.
        options: of the engine.

    Raises:
        JustrightError: the process failed.
    """
    job = {"model": str(model), "contender": contender, "kind": kind, "context": context, "tokens": tokens}
    command = [sys.executable, "-m", "justright.bench.peak_process", json.dumps(job | {"options": options})]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        raise JustrightError(
            f"measuring the memory of {contender} failed: {lines[-1] if lines else 'no message'}"
        )
    return int(json.loads(result.stdout.splitlines()[-1])["peak_bytes"])


def own_peak_bytes() -> int:
    """Peak resident size of this process since its program started."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent's size at the fork
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
