"""Drafters: what guesses the next tokens for the engine to verify."""
