"""Pretraining of the embedded tiny CLIP."""
