"""AnomalyCLIP (arXiv 2310.18961), table 14: the word for the abnormal state, on medical data sets.

  python launch.py --config=configs/tables/anomalyclip_14_words_medical.py --workdir=runs/anomalyclip14

See anomalyclip_13_words_industrial.py for the readings. No demo: there are no drawn medical images.
"""

from zsad_jax.configs import common
from zsad_jax.configs.tables import anomalyclip_13_words_industrial

NUMBERS = {  # AUPRO, image AUROC of each word
  'head_ct': ((None, 93.4), (None, 93.1), (None, 93.3), (None, 93.5), (None, 93.8)),
  'brain_mri': ((None, 90.3), (None, 87.8), (None, 87.7), (None, 88.3), (None, 88.6)),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every word on every data set."""
  common.choice(arg)
  return anomalyclip_13_words_industrial.of_words(
    arg, 'AnomalyCLIP, table 14: words for the abnormal state, medical', NUMBERS)
