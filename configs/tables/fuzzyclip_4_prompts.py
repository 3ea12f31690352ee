"""FuzzyCLIP, table 4: training prompts of the linear layers, on MVTec AD (pixel level).

  python launch.py --config=configs/tables/fuzzyclip_4_prompts.py:demo --workdir=runs/fuzzy4-demo
  python launch.py --config=configs/tables/fuzzyclip_4_prompts.py --workdir=runs/fuzzy4

The text around the table speaks of VisA, but its rows are those of MVTec AD elsewhere: the precise one is APRIL-GAN's
with 15 epochs, the stacked one that of table 6 with one group. The others are trained for two epochs.
"""

from zsad_jax.configs import april_gan, fuzzyclip, tables


def get_config(arg=None):
  """FuzzyCLIP's config and a row for every kind of prompt; `:demo` on the embedded tiny CLIP."""
  whole = tables.system(fuzzyclip, from_mvtec='visa')
  systems = {
    'precise': tables.system(april_gan, from_mvtec='visa'),
    '"object"': tables.changed(whole, {'stack.names': 'object', 'csp.k': 1}),
    'stacked': tables.changed(whole, {'csp.k': 1}),
  }
  numbers = {'mvtec_ad': ((44.0, 40.8, 43.3), (83.2, 42.0, 44.2), (86.6, 44.2, 46.6))}
  return tables.grid(arg, 'FuzzyCLIP, table 4: prompts', tables.FUZZYCLIP[:3], systems, numbers, base=whole)
