"""The weights of a model: their names, their memory, what computes them, what tells of their past."""
