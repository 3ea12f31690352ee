"""Zero-shot protocol: what was trained on must not be evaluated, and a result says what was.

The guard knows data sets by their names (all configurations of one are the same set, and some contain others) and
images by the digest of their stored bytes, so that a copy in another format or size is not recognised.
"""

from collections.abc import Sequence

from zsad_jax.data import catalog, images, naming
from zsad_jax.data.dataset import Dataset

SHOWN = 3                        # how many shared images a message names


def check_names(aux: str, target: str, aux_categories: Sequence[str] = (), target_categories: Sequence[str] = ()
                ) -> None:
  """Raises ValueError when two names stand for the same images: one set, or one that contains the other.

  Of one set, categories that differ may be trained on and evaluated; () = all categories. Nothing is read.
  """
  one, other = naming.identity(aux), naming.identity(target)
  for whole, part in ((one, other), (other, one)):
    if whole in catalog.CATALOG and part in catalog.CATALOG[whole].contains:
      raise ValueError(_refusal(f'data.aux is {aux} and data.target is {target}: {whole} contains {part}'))
  shared = set(aux_categories) & set(target_categories)
  every = not (aux_categories and target_categories)
  if one == other and (shared or every):
    what = ', '.join(sorted(shared)) or 'every category'
    both = f'both {aux}' if aux == target else f'{aux} and {target}, one data set,'
    raise ValueError(_refusal(f'data.aux and data.target are {both} and share {what}'))


def _refusal(found: str) -> str:
  return (f'{found}, so this would not be zero-shot; choose other data sets, or data.aux_categories and '
          'data.target_categories without common ones, or say --config.data.allow_seen=True')


def shared_images(aux: Dataset, target: Dataset) -> list[tuple[str, str]]:
  """Returns (id in `aux`, id in `target`) of each image of `target` whose stored bytes are in `aux` too."""
  known = dict(zip(reversed(aux.image_sha256), reversed(aux.ids)))      # of several, the first
  return [(known[digest], key) for digest, key in zip(target.image_sha256, target.ids) if digest in known]


def check_images(aux: Dataset, target: Dataset) -> None:
  """Raises ValueError when the chosen categories of two open data sets share images: how many, and the first ones."""
  found = shared_images(aux, target)
  if found:
    first = ', '.join(f'{a} = {b}' for a, b in found[:SHOWN]) + (', ...' if len(found) > SHOWN else '')
    raise ValueError(_refusal(
        f'{len(found)} of the {len(target)} images of {target.name} (data.target) are in {aux.name} (data.aux) too: '
        f'{first}'))


def record(aux: Dataset | None, target: Dataset, *, aux_name: str = '', target_name: str = '', allow_seen: bool = False
           ) -> dict:
  """Returns what a result must say of its data, as a JSON-able dict: both sets, and whether they share images.

  Args:
    aux: what was trained on, None for nothing.
    target: what was evaluated.
    aux_name, target_name: as in the config, with the configuration or the path.
    allow_seen: whether shared images were allowed.
  """
  found = shared_images(aux, target) if aux is not None else []
  return {
      'auxiliary': None if aux is None else _described(aux, aux_name), 'target': _described(target, target_name),
      'allow_seen': allow_seen,
      'shared_images': {'count': len(found), 'first': [list(pair) for pair in found[:SHOWN]]}}


def _described(dataset: Dataset, name: str) -> dict:
  rules = dataset.rules
  shown = {background: word for word, background in images.TRANSPARENCY.items()}
  anomalous = int(dataset.labels.sum())
  return {
      'name': name or dataset.name, 'split': dataset.split, 'categories': dataset.categories,
      'normal': len(dataset) - anomalous, 'anomalous': anomalous, 'fingerprint': dataset.fingerprint,
      'exif': rules and rules.exif, 'transparency': rules and shown.get(rules.background, rules.background),
      'notes': dataset.notes, 'skipped': dataset.skipped}
