"""RWDA (arXiv 2308.11119), table 1: zero-shot of an unknown and of a known object, and with 1, 2 and 4 references.

  python launch.py --config=configs/tables/rwda_1_main.py:demo --workdir=runs/rwda1-demo
  python launch.py --config=configs/tables/rwda_1_main.py --workdir=runs/rwda1

On MVTec AD and on VisA; configs/rwda.py has the published standard deviations over ten seeds.
"""

from configs import rwda, tables

ROWS = (  # label, score, whether the object is known, references a category
  ('unknown, CLIP', 'clip', False, 0), ('unknown, ours', 'fnn', False, 0), ('unknown, CLIP + ours', 'sum', False, 0),
  ('known, CLIP', 'clip', True, 0), ('known, CLIP + ours', 'sum', True, 0),
  ('1 shot, CLIP + ours', 'sum', True, 1), ('2 shots, CLIP + ours', 'sum', True, 2),
  ('4 shots, CLIP + ours', 'sum', True, 4),
)


def get_config(arg=None):
  """RWDA's config and its rows on every data set; `:demo` on the embedded tiny CLIP and the drawn target."""
  c = rwda.get_config(arg)
  targets = ('mvtec_ad', 'visa') if arg != 'demo' else (c.data.target,)
  return rwda_table(c, 'RWDA, table 1: zero-shot and few-shot', [
    row(f'{target}, {label}', score, known, shots, target=target)
    for target in targets for label, score, known, shots in ROWS])


def row(label, score, known=False, shots=0, *, target='mvtec_ad', changes=(), published=None):
  """A row of RWDA; its published means, (AUROC, AP, F1-max), are those of configs/rwda.py unless given."""
  changed = {'score': score, 'prompt.class_word': '' if known else 'object', 'fewshot.shots': shots,
             'data.target': target, **dict(changes)}
  if published is None:
    published = rwda.PUBLISHED[score, known, shots].get(target, ())
  auroc, ap, f1max = published or (None,) * 3
  made = tables.row(label, changed, (), (auroc, f1max, ap) if published else (), clip=rwda.CLIP, target=target)
  made.published.shots = shots
  return made


def rwda_table(config, title, rows):
  """The config with a table of image metrics alone."""
  made = tables.table(config, title, rows)
  made.table.metrics = tables.IMAGE
  return made
