"""AnomalyCLIP (arXiv 2310.18961), table 8: quality on VisA, to be compared with cost.

  python launch.py --config=configs/tables/anomalyclip_8_cost.py:demo --workdir=runs/anomalyclip8-demo
  python launch.py --config=configs/tables/anomalyclip_8_cost.py --workdir=runs/anomalyclip8

The paper's costs on an RTX 3090, in minutes per epoch of 1,725 images and in images per second: CLIP -, 13.23; WinCLIP
-, 1.20; VAND 13.56, 9.23; CoOp 12.25, 12.75; AnomalyCLIP 13.71, 8.92; without DPAM 12.98, 10.21. Costs depend on the
machine: a row's manifest.json has its seconds, and --mode=bench measures a config.
"""

from zsad_jax.configs import anomalyclip, tables
from zsad_jax.configs.tables.anomalyclip_1_industrial import NUMBERS, SYSTEMS


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every system; `:demo` on the tiny CLIP and drawn target."""
  chosen = [label for label in SYSTEMS if label != 'CLIP-AC']
  systems = {label: SYSTEMS[label] for label in chosen}
  systems['AnomalyCLIP, no DPAM'] = tables.changed(tables.system(anomalyclip), {'t1_dpam': False})
  of_visa = dict(zip(SYSTEMS, NUMBERS['visa']))
  numbers = {'visa': [*(of_visa[label] for label in chosen), (91.9, 84.9, 73.0, 77.7)]}
  return tables.grid(arg, 'AnomalyCLIP, table 8: quality beside cost', tables.ANOMALYCLIP, systems, numbers,
                     base=SYSTEMS['AnomalyCLIP'])
