"""The recipes of the zoo's models: texts, problems, tokenizer, training loop, and one recipe per model."""
