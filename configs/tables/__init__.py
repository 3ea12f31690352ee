"""Tables of papers as configs: a method's config, and rows that change it; launch.py runs one experiment a row."""

import ml_collections as mlc

PIXEL = ('pixel_auroc', 'pixel_f1max', 'pixel_ap', 'aupro_seed200')  # in the order in which CLIP-AD prints them
IMAGE = ('image_auroc', 'image_f1max', 'image_ap')


def row(label, changes, pixel=(), image=(), *, clip='vit_b16_plus_240:laion400m_e31', target='mvtec_ad'):
  """A row: its name, {key: value} of what it changes, and the means published for it on `clip` and `target`."""
  published = {**dict(zip(PIXEL, pixel)), **dict(zip(IMAGE, image))}
  return mlc.ConfigDict(dict(label=label, changes=tuple(changes.items()), published={'clip': clip, target: published}))


def table(config, title, rows):
  """The config with the table's title, columns and rows."""
  numbered = {f'row{number:02d}': row for number, row in enumerate(rows, 1)}  # keys of a config are sorted
  config.table = mlc.ConfigDict(dict(title=title, metrics=PIXEL + IMAGE, rows=numbered))
  return config
