"""AnomalyCLIP (arXiv 2310.18961), table 10: attention modes of the second stream, on MVTec AD and VisA.

  python launch.py --config=configs/tables/anomalyclip_10_attention.py:demo --workdir=runs/anomalyclip10-demo
  python launch.py --config=configs/tables/anomalyclip_10_attention.py --workdir=runs/anomalyclip10

Ensembles average the logits of their streams, as "logit output" is read here; dpam.ensemble=probs is the other reading.
"""

from zsad_jax.configs import anomalyclip, tables

MODES = {'Q-K': 'qk', 'V-V': 'vv', 'QQ+KK+VV': 'ens1', 'QK+QQ+KK+VV': 'ens2'}
NUMBERS = {  # pixel AUROC, AUPRO and image AUROC, AP of each row
  'mvtec_ad': ((87.9, 80.0, 80.7, 89.5), (91.1, 81.4, 91.5, 96.2), (91.2, 83.3, 91.4, 96.1), (90.7, 80.5, 90.8, 96.0)),
  'visa': ((91.9, 84.9, 73.0, 77.7), (95.5, 87.0, 82.1, 85.4), (95.8, 87.6, 82.3, 85.7), (94.9, 86.6, 80.7, 83.7)),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every attention; `:demo` on the embedded tiny CLIP."""
  whole = tables.system(anomalyclip)
  systems = {label: tables.changed(whole, {'dpam.mode': mode}) for label, mode in MODES.items()}
  return tables.grid(arg, 'AnomalyCLIP, table 10: attention', tables.ANOMALYCLIP, systems, NUMBERS, base=whole)
