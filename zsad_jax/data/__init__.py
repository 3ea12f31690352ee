"""Data sets as records of image, mask and labels: `load` one by name, `verify` its raw folder."""

from zsad_jax.data.dataset import Dataset
from zsad_jax.data.loading import load, names
from zsad_jax.data.verification import Verdict, verify

__all__ = ['Dataset', 'Verdict', 'load', 'names', 'verify']
