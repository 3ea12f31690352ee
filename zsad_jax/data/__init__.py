"""Data sets: `load` one by name, read it in `batches`, `verify` its raw folder, hold two against each other."""

from zsad_jax.data.dataset import Dataset
from zsad_jax.data.loading import load
from zsad_jax.data.naming import is_own, names, rules
from zsad_jax.data.pipeline import batches
from zsad_jax.data.verification import Verdict, verify

__all__ = ['Dataset', 'Verdict', 'batches', 'is_own', 'load', 'names', 'rules', 'verify']
