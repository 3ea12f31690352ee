"""Procedural categories that prompts are evaluated on."""
