"""The peak memory of one contender, measured in a process of its own (`peak_process`).

Loading counts: a contender that must hold the weights twice to pack them needs the memory too.
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
        tokens: to emit.
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
    """The largest resident size that this process has had since its program started."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the parent's size at the fork
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
