"""zsad_jax: zero-shot visual anomaly detection on a frozen CLIP, in JAX.

  detector = zsad_jax.load('anomalyclip:demo', workdir='runs/demo')
  for found in detector.predict(['part.jpg']): print(found.score, found.is_anomaly)
"""

__version__ = '0.1.0'


def __getattr__(name):
  if name in ('Detector', 'load'):  # at first use, so that importing the package stays quick
    from zsad_jax import detector

    return getattr(detector, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
