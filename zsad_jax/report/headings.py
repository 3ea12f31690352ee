"""Names of metrics, figures and runs as people read them, on pages and in tables."""

METRICS = {
  'image_auroc': 'Image AUROC', 'image_ap': 'Image AP', 'image_f1max': 'Image F1-max',
  'pixel_auroc': 'Pixel AUROC', 'pixel_ap': 'Pixel AP', 'pixel_f1max': 'Pixel F1-max',
  'aupro': 'AUPRO', 'aupro_200': 'AUPRO-200',
}
FIGURES = {'t-sne': 't-SNE of embeddings', 'attention': 'Attention maps'}


def metric(key: str) -> str:
  """Returns the heading of a metric: 'Image AUROC' for 'image_auroc'."""
  return METRICS.get(key, key)


def figure(key: str) -> str:
  """Returns the heading of a diagnostic figure: 'Attention maps' for 'attention'."""
  return FIGURES.get(key, key)


def run(label: str, source: str, target: str, seed: int, *, split: str = 'test', shots: int = 0,
        oracle: bool = False) -> str:
  """Returns the heading of a run, 'AnomalyCLIP, trained on visa, tested on mvtec (seed 111)'.

  Args:
    label: name of the method.
    source: name of the auxiliary data set; 'texts' for a method that trains on texts, 'nothing' if nothing was trained.
    target: name of the target data set.
    seed: of the run.
    split: of the target data set.
    shots: references per category.
    oracle: whether the epoch was chosen on the target.
  """
  name = f'{label} (training-free)' if source == 'nothing' else f'{label}, trained on {source}'
  few = f' with {shots} reference image{"s" * (shots > 1)} per category' if shots else ''
  where = target if split == 'test' else f'{target}, split {split}'
  return f'{name}, tested on {where}{few} (seed {seed}{", oracle epoch" * oracle})'
