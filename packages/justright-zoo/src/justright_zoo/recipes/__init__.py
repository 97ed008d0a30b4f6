"""The recipes that made the zoo's models: texts, problems, tokenizer, training loop, one recipe a model."""
