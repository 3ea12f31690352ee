"""FuzzyCLIP, table 7: image scores with and without the learned prompts (RPL), on VisA.

  python launch.py --config=configs/tables/fuzzyclip_7_rpl.py:demo --workdir=runs/fuzzy7-demo
  python launch.py --config=configs/tables/fuzzyclip_7_rpl.py --workdir=runs/fuzzy7

How images are scored without it is not stated; here by the untrained stacked prompt of the target's names.
"""

from zsad_jax.configs import fuzzyclip, tables


def get_config(arg=None):
  """FuzzyCLIP's config and both rows; `:demo` on the embedded tiny CLIP."""
  whole = tables.system(fuzzyclip, from_mvtec='visa')
  systems = {'without RPL': tables.changed(whole, {'score.text': 'stack_target'}), 'with RPL': whole}
  numbers = {'visa': ((79.0, 82.9, 78.8), (84.7, 86.9, 82.7))}
  return tables.grid(arg, 'FuzzyCLIP, table 7: RPL', tables.FUZZYCLIP[3:], systems, numbers, base=whole)
