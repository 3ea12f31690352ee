"""Zero-shot visual anomaly detection on a frozen CLIP, in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from zsad_jax.predict.detector import Detector, Prediction, load

__version__ = '0.1.0'
__all__ = ['Detector', 'Prediction', '__version__', 'load']


def __getattr__(name: str) -> Any:
  """Imports the Python API on first use, so that `import zsad_jax` does not import JAX."""
  if name in ('Detector', 'Prediction', 'load'):
    from zsad_jax.predict import detector
    return getattr(detector, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__} - {'Any', 'TYPE_CHECKING'})
