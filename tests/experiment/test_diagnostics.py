"""Optional figures of an evaluation: what is laid out, what is drawn, and what is left out."""

import functools
import io

import jax
import numpy as np
import pytest
from PIL import Image
from small_experiments import config

from zsad_jax.configs import anomalyclip, rwda
from zsad_jax.experiment import diagnostics, setup
from zsad_jax.experiment.run import Run
from zsad_jax.report import diagnostic_figures


def opened(module, folders, **changes):
  """(run, target data set) that reads past the store."""
  run = Run.load(config(module, folders, **{'machine.store_features': False, 'machine.encode_batch': 8, **changes}))
  return run, setup.open_data(run.cfg, 'target')


@pytest.fixture
def plots(monkeypatch):
  """The arguments of diagnostic_figures.tsne, in place of its slow layout."""
  calls = []
  monkeypatch.setattr(diagnostic_figures, 'tsne', lambda *args: calls.append(args) or b'png')
  return calls


def test_no_figure_is_drawn_unless_asked_for(folders):
  run, dataset = opened(anomalyclip, folders)
  assert diagnostics.figures(run, {}, dataset) == {}


@pytest.mark.slow
def test_class_tokens_are_laid_out_with_the_texts(folders, plots):
  run, dataset = opened(anomalyclip, folders, **{'report.tsne': True})
  params = jax.jit(run.init)()
  assert list(diagnostics.figures(run, params, dataset)) == ['t-sne']
  (title, panels, seed), = plots
  images, text = panels['class tokens and texts']
  assert dataset.name in title and seed == run.cfg.seed
  assert images.values.shape == (len(dataset), 128)
  np.testing.assert_array_equal(images.labels, dataset.labels)
  assert text.labels.tolist() == [0, 1]
  encode = functools.partial(run.method.encode_text, names=('x',), clip=run.clip, cfg=run.cfg)
  np.testing.assert_allclose(text.values, jax.jit(encode)(params, run.clip.params)[0], atol=1e-5)


@pytest.mark.slow
def test_hidden_layers_are_laid_out_with_generated_sentences(folders, plots):
  run, dataset = opened(rwda, folders, **{'report.tsne': True, 'sentences.pairs': 6})
  diagnostics.figures(run, jax.jit(run.init)(), dataset)
  panels = plots[0][1]
  assert list(panels) == ['embeddings', *(f'layer {i}' for i in range(1, 1 + len(run.cfg.fnn.hidden)))]
  for name, width in zip(panels, (128, *run.cfg.fnn.hidden)):
    texts, images = panels[name]
    assert texts.values.shape == (12, width) and images.values.shape == (len(dataset), width)
    assert texts.labels.tolist() == [0, 1] * 6


def test_text_features_of_another_form_are_left_out_and_the_caption_says_so(folders, plots, monkeypatch):
  run, dataset = opened(anomalyclip, folders, **{'report.tsne': True})
  run = Run(run.cfg, run.method._replace(encode_text=lambda *args, **options: None), run.clip, run.place, run.local)
  _, caption = diagnostics.figures(run, {}, dataset)['t-sne']
  assert 'no single text' in caption and list(plots[0][1]) == ['class tokens']


@pytest.mark.slow
def test_attention_is_drawn_for_an_anomalous_image_of_each_category(folders, monkeypatch):
  run, dataset = opened(anomalyclip, folders, **{'report.attention': 2})
  items = []
  monkeypatch.setattr(diagnostic_figures, 'attention', lambda title, drawn: items.extend(drawn) or b'png')
  (_, caption), = diagnostics.figures(run, {}, dataset).values()
  assert 'block 2' in caption and len(items) == 2
  for item in items:
    assert set(item.maps) == {'qk', 'qq', 'kk', 'vv'} and 'good' not in item.caption
    assert all(weights.shape == (run.clip.grid ** 2,) * 2 for weights in item.maps.values())


def test_the_query_patch_holds_most_of_the_defect():
  mask = np.zeros((40, 80), np.uint8)
  mask[21:29, 62:70] = 255
  mask[0, 0] = 255
  assert diagnostics.query_patch(mask, 4) == (2, 3)
  assert diagnostics.query_patch(np.zeros((8, 8)), 5) == (2, 2)


@pytest.mark.slow  # importing scikit-learn
def test_figures_are_pictures_and_a_seed_fixes_the_plane():
  rng = np.random.default_rng(0)
  kinds = [diagnostic_figures.Points('image', rng.normal(size=(6, 5)), np.arange(6) % 2),
           diagnostic_figures.Points('text', rng.normal(size=(2, 5)), np.arange(2))]
  assert Image.open(io.BytesIO(diagnostic_figures.tsne('points', {'here': kinds}, 3))).format == 'PNG'
  values = rng.normal(size=(4, 3))
  np.testing.assert_array_equal(diagnostic_figures.plane(values, 0), diagnostic_figures.plane(10 * values, 0))
  maps = {mode: np.full((16, 16), 1 / 16) for mode in diagnostic_figures.MODES}
  item = diagnostic_figures.Attention(Image.new('RGB', (30, 20)), maps, (1, 2), 'a: b')
  assert Image.open(io.BytesIO(diagnostic_figures.attention('block', [item]))).format == 'PNG'
