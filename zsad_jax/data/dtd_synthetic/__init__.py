"""DTD-Synthetic."""
