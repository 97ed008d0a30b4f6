"""Build a bundle from a pair of models: prune both alike, extract the switch, train the drafter."""
