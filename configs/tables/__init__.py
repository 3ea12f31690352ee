"""Tables of papers as configs: launch.py runs one experiment per row and prints the published means next to its own.

A table's config is that of its main method, with `table`: title, metrics and rows. A row is a ConfigDict with a label,
the column (a data set) it belongs to ('' for a table of one part), the folder it runs in (rows that share one share
what is trained there) and a whole config with its published means. A row without a config is only quoted. Keys given on
the command line, such as --config.seeds=3, apply to every row that has them.
"""

import ml_collections as mlc

PIXEL = ('pixel_auroc', 'pixel_f1max', 'pixel_ap', 'aupro_200')  # in the order in which CLIP-AD prints them
IMAGE = ('image_auroc', 'image_f1max', 'image_ap')
ANOMALYCLIP = ('pixel_auroc', 'aupro_200', 'image_auroc', 'image_ap')  # as AnomalyCLIP prints them
FUZZYCLIP = ('aupro_200', 'pixel_ap', 'pixel_f1max', 'image_auroc', 'image_ap', 'image_f1max')  # and FuzzyCLIP


def row(label, changes, pixel=(), image=(), *, clip='vit_b16_plus_240:laion400m_e31', target='mvtec_ad', column=''):
  """A row: the table's config with {dotted key: value} changed, and the means published on `clip` and `target`."""
  published = {**dict(zip(PIXEL, pixel)), **dict(zip(IMAGE, image))}
  return mlc.ConfigDict(dict(label=label, column=column, folder='', changes=tuple(changes.items()),
                             published={'clip': clip, target: published}))


def quoted(label, means, column=''):
  """A row of a system that is not here or cannot be run: its published means, labelled so."""
  return mlc.ConfigDict(dict(label=f'{label} (published only)', column=column, folder='', published=dict(means)))


def another(label, config, means, column=''):
  """A row with the config of another method; means are {metric: percent}.

  What is trained on one auxiliary data set is shared by the columns.
  """
  published = {'clip': config.clip, config.data.target: dict(means)}
  if 'fewshot' in config:
    published['shots'] = config.fewshot.shots
  folder = f'{label} from {config.data.aux}' if column and 'optim' in config else label
  made = mlc.ConfigDict(dict(label=label, column=column, folder=folder, published=published))
  made.config = config
  return made


def table(config, title, rows, metrics=PIXEL + IMAGE):
  """The config with a table of these rows, each of which gets a whole config.

  A row's published means hold for its image size.
  """
  base = config.to_dict()
  finished = {}
  for number, made in enumerate(rows, 1):
    entry = mlc.ConfigDict(dict(label=made.label, column=made.column, folder=made.folder))
    if 'changes' in made or 'config' in made:
      entry.config = _whole(made, base)
    else:
      entry.published = made.published
    finished[f'row{number:02d}'] = entry  # keys of a config are sorted
  config.table = mlc.ConfigDict(dict(title=title, metrics=metrics, rows=finished))
  return config


def _whole(made, base):
  """The config of a row: its own, or the table's with the row's changes; with the row's label and published means.

  Raises ValueError for a change of a key that the table's config does not have.
  """
  config = mlc.ConfigDict(made.config.to_dict() if 'config' in made else base)
  for dotted, _ in made.get('changes', ()):
    node = config
    for part in dotted.split('.'):
      if part not in node:
        raise ValueError(f'row {made.label!r} changes {dotted}, which the config of {config.method} does not have')
      node = node[part]
  config.update_from_flattened_dict(dict(made.get('changes', ())))
  if 'epochs' in config.get('optim', {}):
    config.optim.epochs = config.train.epochs  # one number in every config, by a reference that a copy does not keep
  system = config.get('label', config.method)
  config.label = made.label if system.lower() in made.label.lower() else f'{system}, {made.label}'
  config.published = mlc.ConfigDict(made.published.to_dict())
  config.published.only = (*config.published.get('only', ()), ('image_size', config.image_size))
  return config


def auxiliary(target):
  """The auxiliary data set of the papers for a target: VisA for MVTec AD, MVTec AD for all others."""
  return 'visa' if target == 'mvtec_ad' else 'mvtec_ad'


def system(module, variant=None, *, from_mvtec=None):
  """make(arg, target, aux) -> config of a system; `from_mvtec` is its variant for training on MVTec AD."""
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
  """A table of systems by data sets, one part per data set.

  Args:
    arg: 'demo' for the drawn target alone, without published means, or None.
    title, metrics: as for `table`.
    systems: {label: make(arg, target, aux)}; None instead of make quotes the published means and runs nothing.
    numbers: {target: [percent of `metrics` for each system]}, None for an unknown cell and () for an unknown row.
    base: make of the table's own config.
    aux: auxiliary data set; '' is `auxiliary` of the target.
  """
  demo, rows = arg == 'demo', []
  top = base(arg, next(iter(numbers)), aux or auxiliary(next(iter(numbers))))
  for target, values in ((top.data.target, [()] * len(systems)),) if demo else numbers.items():
    column = '' if demo else target
    for (label, make), row_of in zip(systems.items(), values, strict=True):
      means = {metric: value for metric, value in zip(metrics, row_of) if value is not None}
      if make is not None:
        rows.append(another(label, make(arg, target, aux or auxiliary(target)), means, column))
      elif means and not demo:
        rows.append(quoted(label, means, column))
  return table(top, title, rows, metrics)
