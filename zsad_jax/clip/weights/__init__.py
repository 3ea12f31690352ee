"""CLIP weights: from a name or a path to verified arrays in a Flax tree."""
