"""`python -m zsad_jax`: the command line."""

from zsad_jax import cli

cli.run()
