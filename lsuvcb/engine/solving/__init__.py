"""The scale and the shift that bring one layer to its target."""
