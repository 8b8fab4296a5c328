"""Knowing beforehand: the memory and the time of a training step or a prediction, without running it."""
