"""Procedural categories that prompts are trained on."""
