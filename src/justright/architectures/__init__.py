"""What a family of models looks like, as data, and what one model is: its spec."""
