"""AnomalyCLIP (arXiv 2310.18961), table 9: one context shared by both prompts, or one each, on MVTec AD and VisA.

  python launch.py --config=configs/tables/anomalyclip_9_contexts.py:demo --workdir=runs/anomalyclip9-demo
  python launch.py --config=configs/tables/anomalyclip_9_contexts.py --workdir=runs/anomalyclip9
"""

from zsad_jax.configs import anomalyclip, tables

WHOLE = tables.system(anomalyclip)
SYSTEMS = {'shared': tables.changed(WHOLE, {'prompt.shared_ctx': True}), 'unshared': WHOLE}
NUMBERS = {  # pixel AUROC, AUPRO and image AUROC, AP of each row
  'mvtec_ad': ((90.5, 80.1, 90.9, 95.2), (91.1, 81.4, 91.5, 96.2)),
  'visa': ((95.0, 86.4, 81.5, 84.4), (95.5, 87.0, 82.1, 85.4)),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for either; `:demo` on the embedded tiny CLIP."""
  return tables.grid(arg, 'AnomalyCLIP, table 9: contexts', tables.ANOMALYCLIP, SYSTEMS, NUMBERS, base=WHOLE)
