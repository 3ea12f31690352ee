"""FuzzyCLIP, table 8: prompts of a group at test time, on VisA; the table's column AUROC holds AUPRO.

  python launch.py --config=configs/tables/fuzzyclip_8_test_prompts.py:demo --workdir=runs/fuzzy8-demo
  python launch.py --config=configs/tables/fuzzyclip_8_test_prompts.py --workdir=runs/fuzzy8
"""

from zsad_jax.configs import fuzzyclip, tables

ROWS = (  # stack.test_form; AUPRO, AP and F1-max of pixels
  ('test', 89.8, 26.5, 33.0), ('cluster', 89.8, 26.5, 32.9), ('test_cluster', 89.8, 28.0, 34.2),
  ('test_cluster_test', 89.7, 26.9, 33.0),
)


def get_config(arg=None):
  """FuzzyCLIP's config for VisA and a row for each form; `:demo` on the embedded tiny CLIP, with two groups."""
  c = fuzzyclip.get_config(arg or 'visa')
  if arg == 'demo':
    c.csp.k = 2
  rows = []
  for form, aupro, ap, f1max in ROWS:
    rows.append(tables.row(form.replace('_', ' + '), {'stack.test_form': form}, clip='vit_l14_336', target='visa'))
    rows[-1].published.visa.update(aupro_200=aupro, pixel_ap=ap, pixel_f1max=f1max)
  return tables.table(c, 'FuzzyCLIP, table 8: prompts at test time', rows)
