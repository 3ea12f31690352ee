"""Tables of papers as configs: a method's config, and rows that change it; launch.py runs one experiment a row.

A row is a ConfigDict: its label; the column (a data set) whose part of the table it stands in, '' where there is one
part; what it changes of the table's config, and what of it another method's config drops and has of its own; the
folder it runs in, where it shares what is trained with another row; and the published means. A row with run=False is
only quoted.
"""

import ml_collections as mlc

PIXEL = ('pixel_auroc', 'pixel_f1max', 'pixel_ap', 'aupro_200')  # in the order in which CLIP-AD prints them
IMAGE = ('image_auroc', 'image_f1max', 'image_ap')
ANOMALYCLIP = ('pixel_auroc', 'aupro_200', 'image_auroc', 'image_ap')  # as AnomalyCLIP prints them
FUZZYCLIP = ('aupro_200', 'pixel_ap', 'pixel_f1max', 'image_auroc', 'image_ap', 'image_f1max')  # and FuzzyCLIP


def row(label, changes, pixel=(), image=(), *, clip='vit_b16_plus_240:laion400m_e31', target='mvtec_ad', column=''):
  """A row: its name, {key: value} of what it changes, and the means published for it on `clip` and `target`."""
  published = {**dict(zip(PIXEL, pixel)), **dict(zip(IMAGE, image))}
  return mlc.ConfigDict(dict(label=label, column=column, changes=tuple(changes.items()),
                             published={'clip': clip, target: published}))


def quoted(label, means, column=''):
  """A row of a system that is not here, or cannot be run: {metric: percent}, labelled so and never run."""
  return mlc.ConfigDict(dict(label=f'{label} (published only)', column=column, run=False, changes=(),
                             published=dict(means)))


def table(config, title, rows, metrics=PIXEL + IMAGE):
  """The config with the table's title, columns, rows, and the seeds of every row: () for the one of its config.

  What is published for a row holds for the number of pixels that it has here.
  """
  for made in rows:
    if made.get('run', True):
      made.published.only = (('image_size', dict(made.changes).get('image_size', config.image_size)),)
  numbered = {f'row{number:02d}': row for number, row in enumerate(rows, 1)}  # keys of a config are sorted
  config.table = mlc.ConfigDict(dict(title=title, metrics=metrics, seeds=(), rows=numbered))
  return config


def auxiliary(target):
  """What the papers learn on for a target: VisA for MVTec AD, MVTec AD for all others."""
  return 'visa' if target == 'mvtec_ad' else 'mvtec_ad'


def system(module, variant=None, *, from_mvtec=None):
  """make(arg, target, aux) -> config of a system; `from_mvtec` is its variant for learning on MVTec AD."""
  def make(arg, target, aux):
    if arg == 'demo':
      return module.get_config('demo')
    c = module.get_config(from_mvtec if from_mvtec and aux == 'mvtec_ad' else variant)
    c.data.aux, c.data.target = aux, target
    return c
  return make


def changed(make, changes):
  """The same with {dotted key: value} of its keys changed."""
  def made(arg, target, aux):
    c = make(arg, target, aux)
    c.update_from_flattened_dict(changes)
    return c
  return made


def grid(arg, title, metrics, systems, numbers, *, base, aux=''):
  """A table of systems by data sets, one part for each data set.

  Args:
    arg: 'demo' for the drawn target alone and nothing published, or None.
    title, metrics: as for `table`.
    systems: {label: make(arg, target, aux)}; None in place of make quotes the published means and runs nothing.
    numbers: {target: [percent of `metrics` for each system]}, None for a cell that is not known and () for a row.
    base: make of the table's own config, of which the rows are changes.
    aux: what is learned on; '' is `auxiliary` of the target.
  """
  demo, rows = arg == 'demo', []
  top = base(arg, next(iter(numbers)), aux or auxiliary(next(iter(numbers))))
  for target, values in ((top.data.target, [()] * len(systems)),) if demo else numbers.items():
    column = '' if demo else target
    for (label, make), row_of in zip(systems.items(), values, strict=True):
      means = {metric: value for metric, value in zip(metrics, row_of) if value is not None}
      if make is not None:
        rows.append(another(top, label, make(arg, target, aux or auxiliary(target)), means, column))
      elif means and not demo:
        rows.append(quoted(label, means, column))
  return table(top, title, rows, metrics)


def another(base, label, config, means, column=''):
  """A row with a config of its own, as what it is more, less and other than the table's; means are {metric: percent}.

  What is trained on one auxiliary set is shared by the columns.
  """
  ours, theirs = ({k: v for k, v in c.to_dict().items() if k not in ('label', 'published', 'table')}
                  for c in (base, config))
  drops, own, changes = [], [], []
  _differ(ours, theirs, '', drops, own, changes)
  made = row(label, dict(changes), clip=config.clip, target=config.data.target, column=column)
  made.drops, made.own = tuple(drops), tuple(own)
  made.folder = f'{label} from {config.data.aux}' if column and 'optim' in config else label
  made.published[config.data.target] = dict(means)
  if 'fewshot' in config:
    made.published.shots = config.fewshot.shots
  return made


def _differ(ours, theirs, prefix, drops, own, changes):
  """Sorts the differences of two trees into keys to drop, (key, value) to add and (key, value) to change."""
  for key, value in ours.items():
    if key not in theirs or type(theirs[key]) is not type(value):
      drops.append(prefix + key)
  for key, value in theirs.items():
    if isinstance(value, dict):
      mine = ours.get(key)
      _differ(mine if isinstance(mine, dict) else {}, value, f'{prefix}{key}.', drops, own, changes)
    elif key not in ours or type(ours[key]) is not type(value):
      own.append((prefix + key, value))
    elif ours[key] != value:
      changes.append((prefix + key, value))
