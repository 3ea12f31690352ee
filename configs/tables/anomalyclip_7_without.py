"""AnomalyCLIP (arXiv 2310.18961), table 7: the full system without one module, on MVTec AD and VisA.

  python launch.py --config=configs/tables/anomalyclip_7_without.py:demo --workdir=runs/anomalyclip7-demo
  python launch.py --config=configs/tables/anomalyclip_7_without.py --workdir=runs/anomalyclip7

Without T2 the prompts name the category (sec. 3.2, fig. 5); the published image AUROC of that row is that of untrained
prompts, which suggests no learned context at all: the second reading. Without T1 the first release read four different
layers: the second reading of that row. Both readings are shown with the same published numbers.
"""

from zsad_jax.configs import anomalyclip, tables

WHOLE = tables.system(anomalyclip)
NUMBERS = {  # pixel AUROC, AUPRO and image AUROC, AP of each row
  'mvtec_ad': ((87.9, 80.0, 80.7, 89.5), (84.3, 75.3, 65.6, 85.3), (90.6, 80.5, 90.4, 95.3), (90.0, 81.1, 91.0, 96.1),
               (91.1, 81.4, 91.5, 96.2)),
  'visa': ((91.9, 84.9, 73.0, 77.7), (89.5, 83.2, 68.1, 72.9), (94.5, 85.6, 81.6, 85.1), (95.2, 86.0, 81.9, 85.2),
           (95.5, 87.0, 82.1, 85.4)),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every module left out; `:demo` on the embedded tiny CLIP."""
  one = {'loss.lambda_local': anomalyclip.get_config(arg).loss.lambda_local / 4}
  layers = {'local_layers': (2, 3, 5, 6) if arg == 'demo' else (6, 12, 18, 24)}
  systems = {
    'without T1': tables.changed(WHOLE, {'t1_dpam': False}),
    'without T1, four layers': tables.changed(WHOLE, one | layers | {'t1_dpam': False}),
    'without T2': tables.changed(WHOLE, {'t2_object_agnostic': False}),
    'without T2, no context': tables.changed(WHOLE, {
      't2_object_agnostic': False, 't2_off': 'no_context', 'prompt.deep_mode': 'concat'}),
    'without T3': tables.changed(WHOLE, {'t3_text_tuning': False}), 'without T4': tables.changed(WHOLE, one),
    'all': WHOLE,
  }
  numbers = {target: (t1, t1, t2, t2, *rest) for target, (t1, t2, *rest) in NUMBERS.items()}
  return tables.grid(arg, 'AnomalyCLIP, table 7: without one module', tables.ANOMALYCLIP, systems, numbers, base=WHOLE)
