"""Training, evaluation, the feature store, checkpoints and the JAX runtime."""
