"""zsad_jax: zero-shot visual anomaly detection on a frozen CLIP, in JAX."""

__version__ = '0.1.0'
