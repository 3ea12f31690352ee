"""Sewer-ML."""
