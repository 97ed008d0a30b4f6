"""Small drafters for the tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from justright.speculative.attention_network import AttentionConfig, AttentionModel
from justright.speculative.lstm_network import LstmConfig, LstmModel

SMALL_TRAINING = (
    *(
        "--sequences",
        "16",
        "--held-out",
        "8",
        "--prompt-tokens",
        "12",
        "--output-tokens",
        "24",
        "--batch",
        "8",
    ),
    *(
        "--chat",
        "0",
        "--epochs",
        "2",
        "--rows",
        "4",
        "--spec-steps",
        "2",
        "--spec-rows",
        "4",
        "--width",
        "32",
    ),
    *("--steps", "3", "--evaluate-every", "4", "--device", "cpu"),
)
"""Arguments of a training that takes seconds."""


def network_for(model: PreTrainedModel, seed: int = 0, **changes: Any) -> LstmModel:
    """An untrained LSTM network for a model, with a [SPEC] embedding."""
    config = model.config.get_text_config()
    vocab_size = min(60, config.vocab_size - 2)
    shape: dict[str, Any] = {"width": 24, "steps": 3, "draft_vocab": vocab_size, "spec": True} | changes
    torch.manual_seed(seed)
    settled = LstmConfig("0" * 16, config.hidden_size, config.vocab_size, **shape)
    embedding = model.get_input_embeddings().weight.detach()
    head = model.get_output_embeddings().weight.detach()
    vocab = torch.randperm(config.vocab_size)[: settled.head_size].sort().values
    network = LstmModel(settled, embedding, head, vocab)
    if network.spec is not None:
        torch.nn.init.normal_(network.spec, std=float(embedding.std()))
    return network.eval().requires_grad_(False)


def saved_attention_drafter(model: PreTrainedModel, folder: Path) -> Path:
    """Save an untrained attention drafter for a model."""
    config = model.config.get_text_config()
    torch.manual_seed(0)
    settled = AttentionConfig("0" * 16, config.hidden_size, config.vocab_size, min(60, config.vocab_size - 2))
    matrices = (m.weight.detach() for m in (model.get_input_embeddings(), model.get_output_embeddings()))
    vocab = torch.randperm(config.vocab_size)[: settled.draft_vocab].sort().values
    AttentionModel(settled, *matrices, vocab).save(folder)
    return folder


def saved_drafter(model: PreTrainedModel, folder: Path, **changes: Any) -> Path:
    """Save an untrained LSTM drafter for a model."""
    network_for(model, **changes).save(folder, dtype=torch.float32)
    return folder
