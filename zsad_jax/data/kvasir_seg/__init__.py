"""Kvasir-SEG."""
