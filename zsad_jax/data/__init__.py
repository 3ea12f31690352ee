"""Data sets: `load` one by its name, read it in `batches`, `verify` its raw folder."""

from zsad_jax.data.dataset import Dataset
from zsad_jax.data.dataset_names import is_own, names, rules
from zsad_jax.data.loading import load
from zsad_jax.data.pipeline import batches
from zsad_jax.data.verification import verify

__all__ = ['Dataset', 'batches', 'is_own', 'load', 'names', 'rules', 'verify']
