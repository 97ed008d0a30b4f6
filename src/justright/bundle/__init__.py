"""A bundle out of a pair of checkpoints: both pruned alike, the switch extracted, the drafter trained for both."""
