"""Draws pictures from the first tables of pages here: speed.png, serve.png (docs/results) and draft.png (docs).

python docs/results/raw/draw.py        (needs matplotlib)
"""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

RAW = Path(__file__).parent
COLOURS = {"plain": "#000000", "transformers": "#D55E00", "suffix": "#0072B2", "hybrid": "#009E73"}


def first_table(page: str) -> list[dict[str, str]]:
    """The first Markdown table of a page: a dict for each row."""
    text = (RAW / page).read_text(encoding="utf-8")
    lines = re.search(r"^\|.*\n(?:\|.*\n)+", text, re.M)[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def speed() -> None:
    """Plain and suffix decoding against `generate`, by context length, one panel for each task."""
    rows = [{**row, "task": row["task"].split("@")} for row in first_table("speed.md")]
    tasks = list(dict.fromkeys(row["task"][0] for row in rows))
    figure = Figure(figsize=(15, 3.8), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True), tasks, strict=True):
        for name in ("suffix", "plain", "transformers"):
            mine = [row for row in rows if row["task"][0] == task and row["contender"] == name]
            times = [float(row["x transformers"]) for row in mine]
            axes.plot([row["task"][1] for row in mine], times, marker="o", color=COLOURS[name], label=name)
        axes.set(title=task, xlabel="context (tokens)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("speed, times transformers' generate")
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(RAW.parent / "speed.png", dpi=110)


def draft() -> None:
    """Tokens per step, speed and cost of a step, by context length."""
    rows = first_table("draft-smollm2.md")
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, column, title in (
        (left, "tokens/step", "tokens per step"),
        (middle, "x plain", "speed, times our plain loop"),
    ):
        for name in dict.fromkeys(row["contender"] for row in rows):
            mine = [row for row in rows if row["contender"] == name]
            values = [float(row[column]) for row in mine]
            axes.plot([row["length"] for row in mine], values, marker="o", color=COLOURS[name], label=name)
        axes.set(title=title, xlabel="context (tokens)", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=8)
    last = [row for row in rows if row["length"] == rows[-1]["length"] and row["verify ms"]]
    names, verify = [row["contender"] for row in last], [float(row["verify ms"]) for row in last]
    right.barh(names, verify, color="#0072B2", label="verify")
    right.barh(names, [float(row["draft ms"]) for row in last], left=verify, color="#E69F00", label="draft")
    right.set(title=f"milliseconds per step, {rows[-1]['length']} tokens", xlabel="ms")
    right.invert_yaxis()
    right.legend(fontsize=8)
    figure.savefig(RAW.parents[1] / "draft.png", dpi=110)


def serve() -> None:
    """Tokens per second by server and number of clients."""
    rows = first_table("serve.md")
    servers = list(dict.fromkeys(row["server"] for row in rows))
    clients = list(dict.fromkeys(row["clients"] for row in rows))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for index, server in enumerate(servers):
        mine = [float(row["tokens/s"]) for row in rows if row["server"] == server]
        places = [at + (index - len(servers) / 2) * 0.13 for at in range(len(clients))]
        axes.bar(places, mine, width=0.12, align="edge", label=server)
    axes.set_xticks(range(len(clients)), clients)
    axes.set(xlabel="clients", ylabel="tokens per second")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.18))
    figure.savefig(RAW.parent / "serve.png", dpi=110)


if __name__ == "__main__":
    speed()
    serve()
    draft()
