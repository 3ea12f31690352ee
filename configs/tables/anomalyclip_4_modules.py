"""AnomalyCLIP (arXiv 2310.18961), table 4: the modules T1 to T4, added one by one, on MVTec AD and VisA.

  python launch.py --config=configs/tables/anomalyclip_4_modules.py:demo --workdir=runs/anomalyclip4-demo
  python launch.py --config=configs/tables/anomalyclip_4_modules.py --workdir=runs/anomalyclip4

T1 DPAM, T2 object-agnostic prompts, T3 learned tokens in the text tower, T4 several layers. The first two rows have
equal image scores and therefore no training: here the untrained words "object." and "damaged object.", a reading. As
first released, T4's four layers were one counted four times, so T4 is the weight of the local losses.
"""

from zsad_jax.configs import anomalyclip, tables

NUMBERS = {  # pixel AUROC, AUPRO and image AUROC, AP of each row
  'mvtec_ad': ((46.8, 15.4, 66.3, 83.3), (68.4, 47.4, 66.3, 83.3), (89.5, 81.2, 90.8, 96.0), (90.0, 81.1, 91.0, 96.1),
               (91.1, 81.4, 91.5, 96.2)),
  'visa': ((47.9, 17.1, 54.4, 61.7), (54.8, 32.7, 54.4, 61.7), (95.0, 85.3, 81.7, 85.2), (95.2, 86.0, 81.9, 85.2),
           (95.5, 87.0, 82.1, 85.4)),
}
WORDS = {'t2_object_agnostic': False, 't2_off': 'no_context', 't3_text_tuning': False}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every module; `:demo` on the embedded tiny CLIP."""
  whole = tables.system(anomalyclip)
  one = {'loss.lambda_local': anomalyclip.get_config(arg).loss.lambda_local / 4}
  systems = {
    'Base': tables.changed(whole, WORDS | {'t1_dpam': False}), '+T1': tables.changed(whole, WORDS),
    '+T2': tables.changed(whole, one | {'t3_text_tuning': False}), '+T3': tables.changed(whole, one), '+T4': whole,
  }
  return tables.grid(arg, 'AnomalyCLIP, table 4: modules', tables.ANOMALYCLIP, systems, NUMBERS, base=whole)
