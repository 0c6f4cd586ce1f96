"""Weights and trainings in files: checkpoints after an epoch, and fits that go on from them."""
