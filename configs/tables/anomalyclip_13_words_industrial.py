"""AnomalyCLIP (arXiv 2310.18961), table 13: the word for the abnormal state, on industrial data sets.

  python launch.py --config=configs/tables/anomalyclip_13_words_industrial.py:demo --workdir=runs/anomalyclip13-demo
  python launch.py --config=configs/tables/anomalyclip_13_words_industrial.py --workdir=runs/anomalyclip13

Only the cells below are known here. That table 13 is about industrial and table 14 about medical data sets is a
reading, and so is the choice of data sets: those with a known cell.
"""

from zsad_jax.configs import anomalyclip, tables

WORDS = ('damaged', 'anomalous', 'flawed', 'defective', 'blemished')
NUMBERS = {  # AUPRO, image AUROC of each word
  'mvtec_ad': ((81.4, 91.5), (81.4, 91.4), (81.4, 91.3), (81.7, 91.4), (81.2, 91.5)),
  'visa': ((87.0, 82.1), (86.5, 80.7), (86.5, 80.7), (86.2, 80.9), (86.5, 80.7)),
  'btad': ((None, 88.3), (None, 84.8), (None, 85.2), (None, 84.8), (None, 85.9)),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every word on every data set; `:demo` on the embedded tiny CLIP."""
  return of_words(arg, 'AnomalyCLIP, table 13: words for the abnormal state, industrial', NUMBERS)


def of_words(arg, title, numbers):
  """A table of the words; numbers are {target: (AUPRO, image AUROC) of each}."""
  whole = tables.system(anomalyclip)
  systems = {word: tables.changed(whole, {'prompt.state_word': word}) for word in WORDS}
  padded = {target: [(None, aupro, auroc) for aupro, auroc in values] for target, values in numbers.items()}
  return tables.grid(arg, title, tables.ANOMALYCLIP, systems, padded, base=whole)
