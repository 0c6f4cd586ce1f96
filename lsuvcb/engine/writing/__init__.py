"""Writing the solutions into the model: all or nothing."""
