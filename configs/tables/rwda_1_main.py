"""RWDA (arXiv 2308.11119), table 1: zero-shot for an unknown and a known object, and with 1, 2 and 4 references.

  python launch.py --config=configs/tables/rwda_1_main.py:demo --workdir=runs/rwda1-demo
  python launch.py --config=configs/tables/rwda_1_main.py --workdir=runs/rwda1

On MVTec AD and on VisA; configs/rwda.py has the published standard deviations over ten seeds. Systems on other features
than CLIP's are quoted. WinCLIP uses CLIP-AD's multi-crop prediction, because its own is not described, and one draw of
references per seed: `--config.seeds=3` draws more.
"""

from zsad_jax.configs import rwda, tables, winclip

ROWS = (  # label, score, whether the object is known, references a category
  ('unknown, CLIP', 'clip', False, 0), ('unknown, ours', 'fnn', False, 0), ('unknown, CLIP + ours', 'sum', False, 0),
  ('known, CLIP', 'clip', True, 0), ('known, CLIP + ours', 'sum', True, 0),
  ('1 shot, CLIP + ours', 'sum', True, 1), ('2 shots, CLIP + ours', 'sum', True, 2),
  ('4 shots, CLIP + ours', 'sum', True, 4),
)
WINCLIP = (('known, WinCLIP', None), ('1 shot, WinCLIP', 'plus'), ('2 shots, WinCLIP', 'plus2'),
           ('4 shots, WinCLIP', 'plus4'))
QUOTED = {  # image AUROC, AP, F1-max
  'mvtec_ad': {
    '1 shot, SPADE': (81.0, 90.6, 90.3), '1 shot, PaDiM': (76.6, 88.1, 88.2), '1 shot, PatchCore': (83.4, 92.2, 90.5),
    '2 shots, SPADE': (82.9, 91.7, 91.1), '2 shots, PaDiM': (78.9, 89.3, 89.2),
    '2 shots, PatchCore': (86.3, 93.8, 92.0), '2 shots, RegAD': (85.7,), '4 shots, SPADE': (84.8, 92.5, 91.5),
    '4 shots, PaDiM': (80.4, 90.5, 90.2), '4 shots, PatchCore': (88.8, 94.5, 92.6), '4 shots, RegAD': (88.2,),
  },
  'visa': {
    '1 shot, SPADE': (79.5, 82.0, 80.7), '1 shot, PaDiM': (62.8, 68.3, 75.3), '1 shot, PatchCore': (79.9, 82.8, 81.7),
    '2 shots, SPADE': (80.7, 82.3, 81.7), '2 shots, PaDiM': (67.4, 71.6, 75.7),
    '2 shots, PatchCore': (81.6, 84.8, 82.5), '4 shots, SPADE': (81.7, 83.4, 82.1),
    '4 shots, PaDiM': (72.8, 75.6, 78.0), '4 shots, PatchCore': (85.3, 87.5, 84.3),
  },
}


def get_config(arg=None):
  """RWDA's config and its rows on every data set; `:demo` on the embedded tiny CLIP and the drawn target."""
  c, demo = rwda.get_config(arg), arg == 'demo'
  rows = []
  for target in (c.data.target,) if demo else QUOTED:
    own = [row(label, score, known, shots, target=target, column='' if demo else target)
           for label, score, known, shots in ROWS]
    others = [winclip_row(label, variant, target, demo) for label, variant in WINCLIP]
    others += [tables.quoted(label, dict(zip(rwda.METRICS, means)), target)
               for label, means in QUOTED.get(target, {}).items()]
    rows += sorted(own + others, key=lambda made: ('unknown', 'known', '1', '2', '4').index(
      made.label.replace(' ', ',').split(',')[0]))
  return rwda_table(c, 'RWDA, table 1: zero-shot and few-shot', rows)


def winclip_row(label, variant, target, demo):
  """WinCLIP's row, with the means that configs/winclip.py quotes, which are this table's."""
  config = winclip.get_config('demo' if demo else variant)
  config.data.target, config.multicrop.recipe = target, 'clip_ad'
  config.fewshot.shots = winclip.SHOTS.get(variant, 0)
  means = {} if demo else {metric: winclip.PUBLISHED[config.fewshot.shots][target][metric] for metric in tables.IMAGE}
  made = tables.another(label, config, means, '' if demo else target)
  made.folder = ' '.join(filter(None, (made.column, label)))
  return made


def row(label, score, known=False, shots=0, *, target='mvtec_ad', changes=(), published=None, column=''):
  """A row of RWDA; its published means, (AUROC, AP, F1-max), are those of configs/rwda.py unless given."""
  changed = {'score': score, 'prompt.class_word': '' if known else 'object', 'fewshot.shots': shots,
             'data.target': target, **dict(changes)}
  if published is None:
    published = rwda.PUBLISHED[score, known, shots].get(target, ())
  auroc, ap, f1max = published or (None,) * 3
  made = tables.row(label, changed, (), (auroc, f1max, ap) if published else (), clip=rwda.CLIP, target=target,
                    column=column)
  made.published.shots = shots
  made.folder = ' '.join(filter(None, (column, label)))
  return made


def rwda_table(config, title, rows):
  """The config with a table of image metrics alone."""
  return tables.table(config, title, rows, tables.IMAGE)
