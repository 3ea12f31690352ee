"""The zero-shot protocol: no evaluation on images that were trained on, and a record of the data behind a result.

The guard knows data sets by their names (all configurations of one are the same set, and some contain others) and
images by the digest of their stored bytes, so it does not recognise a copy in another format or size.
"""

from collections.abc import Sequence

from zsad_jax.data import catalog, dataset_names, images
from zsad_jax.data.dataset import Dataset

SHOWN = 3  # shared images that a message names


def check_names(aux: str, target: str, aux_categories: Sequence[str] = (), target_categories: Sequence[str] = ()
                ) -> None:
  """Raises ValueError if two names stand for the same images: one data set, or one that contains the other.

  Different categories of one data set may be trained and evaluated on; () = all categories. Nothing is read.
  """
  identities = dataset_names.identity(aux), dataset_names.identity(target)
  for whole, part in (identities, identities[::-1]):
    if whole in catalog.CATALOG and part in catalog.CATALOG[whole].contains:
      raise ValueError(_refusal(f'data.aux is {aux} and data.target is {target}: {whole} contains {part}'))
  shared = set(aux_categories) & set(target_categories)
  has_all = not (aux_categories and target_categories)
  if identities[0] == identities[1] and (shared or has_all):
    what = ', '.join(sorted(shared)) or 'every category'
    both = f'both {aux}' if aux == target else f'{aux} and {target}, one data set,'
    raise ValueError(_refusal(f'data.aux and data.target are {both} and share {what}'))


def _refusal(reason: str) -> str:
  return (f'{reason}, so this would not be zero-shot; choose other data sets, or data.aux_categories and '
          'data.target_categories without common ones, or pass --config.data.allow_seen=True')


def shared_images(aux: Dataset, target: Dataset) -> list[tuple[str, str]]:
  """Returns (id in `aux`, id in `target`) of each image of `target` whose stored bytes are also in `aux`."""
  first_id = dict(zip(reversed(aux.image_sha256), reversed(aux.ids)))
  return [(first_id[digest], key) for digest, key in zip(target.image_sha256, target.ids) if digest in first_id]


def check_images(aux: Dataset, target: Dataset) -> None:
  """Raises ValueError if the selected categories of two data sets share images: how many, and the first ones."""
  shared = shared_images(aux, target)
  if shared:
    first = ', '.join(f'{a} = {b}' for a, b in shared[:SHOWN]) + (', ...' if len(shared) > SHOWN else '')
    raise ValueError(_refusal(
        f'{len(shared)} of the {len(target)} images of {target.name} (data.target) are in {aux.name} (data.aux) too: '
        f'{first}'))


def record(aux: Dataset | None, target: Dataset, *, aux_name: str = '', target_name: str = '', allow_seen: bool = False
           ) -> dict:
  """Returns what a result states about its data, as a JSON-able dict: both data sets, and whether they share images.

  Args:
    aux: the auxiliary data set, None if nothing was trained.
    target: the data set that was evaluated.
    aux_name, target_name: as in the config, with the configuration or the path.
    allow_seen: whether shared images were allowed.
  """
  shared = shared_images(aux, target) if aux is not None else []
  return {
      'auxiliary': None if aux is None else _describe(aux, aux_name), 'target': _describe(target, target_name),
      'allow_seen': allow_seen,
      'shared_images': {'count': len(shared), 'first': [list(pair) for pair in shared[:SHOWN]]}}


def _describe(dataset: Dataset, name: str) -> dict:
  rules = dataset.rules
  words = {background: word for word, background in images.TRANSPARENCY.items()}
  anomalous = int(dataset.labels.sum())
  return {
      'name': name or dataset.name, 'split': dataset.split, 'categories': dataset.categories,
      'normal': len(dataset) - anomalous, 'anomalous': anomalous, 'fingerprint': dataset.fingerprint,
      'exif': rules and rules.exif, 'transparency': rules and words.get(rules.background, rules.background),
      'notes': dataset.notes, 'skipped': dataset.skipped}
