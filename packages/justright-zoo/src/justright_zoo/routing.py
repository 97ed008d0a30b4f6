"""Which experts the router chooses in each domain: counts, a summary, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

_WINDOW = 512


@torch.inference_mode()
def routing_shares(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, Sequence[str]]
) -> Tensor:
    """Share of each domain's routed tokens per expert.

    Args:
        model: a mixture-of-experts model of transformers that can output router logits.
        tokenizer: the model's.
        texts: domain -> texts.

    Returns:
        ``[domains, layers, experts]`` float32; each row of experts sums to 1.
    """
    top_k = model.config.num_experts_per_tok
    shares = []
    for pieces in texts.values():
        ids = tokenizer((tokenizer.eos_token or "").join(pieces), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        counts: Tensor | None = None
        for begin in range(0, len(ids), _WINDOW):
            window = torch.tensor([ids[begin : begin + _WINDOW]])
            logits = torch.stack(model(window, output_router_logits=True, use_cache=False).router_logits)
            chosen = logits.topk(top_k, dim=-1).indices.flatten(1)  # [layers, tokens * top_k]
            found = torch.nn.functional.one_hot(chosen, logits.shape[-1]).sum(1)
            counts = found if counts is None else counts + found
        assert counts is not None, "a domain without text"
        shares.append(counts.float() / counts.sum(-1, keepdim=True))
    return torch.stack(shares)


def specialisation(shares: Tensor) -> Tensor:
    """How much routing depends on the domain, per layer, from 0 (not at all) to 1.

    The mutual information of domain and expert divided by the domain's entropy; all domains have the same weight.

    Args:
        shares: ``[domains, layers, experts]`` of `routing_shares`.

    Returns:
        ``[layers]``.
    """
    joint = shares / len(shares)
    mean = joint.sum(0, keepdim=True)
    ratio = torch.where(joint > 0, shares / mean.clamp_min(1e-12), 1.0)
    information = (joint * ratio.log()).sum((0, 2))
    return information / torch.tensor(float(len(shares))).log()


def dead_experts(shares: Tensor, least: float = 0.001) -> list[tuple[int, int]]:
    """``(layer, expert)`` of experts with a share below ``least`` in every domain."""
    found = (shares.amax(0) < least).nonzero().tolist()
    return [(layer, expert) for layer, expert in found]


def save_picture(shares: Tensor, domains: Sequence[str], file: Path) -> Path:
    """Draw a heat map per layer: rows are domains, columns experts, darker is a larger share. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, experts = shares.shape[1:]
    figure = Figure(
        figsize=(1.5 + 0.33 * experts, 0.8 + (0.7 + 0.28 * len(domains)) * layers), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(layers, 1, squeeze=False, sharex=True)
    top = float(shares.max())
    for layer, (axes,) in enumerate(grid):
        image = axes.imshow(shares[:, layer].numpy(), vmin=0, vmax=top, cmap="Blues", aspect="auto")
        axes.set_yticks(range(len(domains)), domains)
        axes.set_title(
            f"layer {layer}: specialisation {float(specialisation(shares)[layer]):.2f}", fontsize=9
        )
    grid[-1][0].set_xticks(range(experts))
    grid[-1][0].set_xlabel("expert")
    figure.colorbar(image, ax=[axes for (axes,) in grid], label="share of the domain's routed tokens")
    figure.savefig(file, dpi=130)
    return file
