"""FuzzyCLIP, table 1: untrained prompts, precise and fuzzy, on MVTec AD (image level).

  python launch.py --config=configs/tables/fuzzyclip_1_untrained.py:demo --workdir=runs/fuzzy1-demo
  python launch.py --config=configs/tables/fuzzyclip_1_untrained.py --workdir=runs/fuzzy1

Whose names the fuzzy prompt lists is not stated: the target's own, or those of the auxiliary data set as a second
reading.
"""

from zsad_jax.configs import fuzzyclip, tables

ROWS = (  # label, score.text; image AUROC, AP, F1-max
  ('precise', 'precise', (86.1, 93.5, 90.4)), ('fuzzy', 'stack_target', (87.7, 94.6, 90.9)),
  ("fuzzy, the auxiliary set's names", 'stack_aux', (87.7, 94.6, 90.9)),
)


def get_config(arg=None):
  """FuzzyCLIP's config and a row for every prompt; `:demo` on the embedded tiny CLIP."""
  whole = tables.system(fuzzyclip, from_mvtec='visa')
  systems = {label: tables.changed(whole, {'score.text': text}) for label, text, _ in ROWS}
  return tables.grid(arg, 'FuzzyCLIP, table 1: untrained prompts', tables.FUZZYCLIP[3:], systems,
                     {'mvtec_ad': [means for *_, means in ROWS]}, base=whole)
