"""The decode engine: its own decode loop around any transformers causal language model."""
