"""Names of metrics, methods, figures and runs as people read them, on pages and in tables."""

METRICS = {
  'image_auroc': 'Image AUROC', 'image_ap': 'Image AP', 'image_f1max': 'Image F1-max',
  'pixel_auroc': 'Pixel AUROC', 'pixel_ap': 'Pixel AP', 'pixel_f1max': 'Pixel F1-max',
  'aupro': 'AUPRO', 'aupro_200': 'AUPRO-200',
}
METHODS = {
  'anomalyclip': 'AnomalyCLIP', 'april_gan': 'APRIL-GAN', 'clip': 'CLIP', 'clip_surgery': 'CLIP Surgery',
  'cocoop': 'CoCoOp', 'coop': 'CoOp', 'fuzzyclip': 'FuzzyCLIP', 'padim_clip': 'PaDiM on CLIP features',
  'patchcore_clip': 'PatchCore on CLIP features', 'rwda': 'RWDA', 'sdp': 'SDP', 'sdp_plus': 'SDP+',
  'spade_clip': 'SPADE on CLIP features', 'winclip': 'WinCLIP',
}

FIGURES = {'t-sne': 't-SNE of embeddings', 'attention': 'Attention maps'}


def metric(key: str) -> str:
  """Returns the heading of a metric: 'Image AUROC' for 'image_auroc'."""
  return METRICS.get(key, key)


def method(name: str) -> str:
  """Returns the name of a method as its paper writes it: 'AnomalyCLIP' for 'anomalyclip'."""
  return METHODS.get(name, name)


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
