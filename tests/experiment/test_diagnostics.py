"""t-SNE and attention of a run: what is drawn, on which images, and what is refused."""

import functools
import io
from types import SimpleNamespace

import jax
import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw
from PIL import Image

from zsad_jax import methods
from zsad_jax.clip import model as clip_lib
from zsad_jax.configs import anomalyclip, patchcore_clip, rwda
from zsad_jax.experiment import diagnostics, setup
from zsad_jax.report import diagnostic_figures


def config(module, tmp, **changes):
  c = module.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 64, 'machine.encode_batch': 8, 'machine.store_features': False, 'machine.data_dir': str(tmp / 'data'),
    'data.target': f'folder:{tmp / "target"}'} | changes)
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  tmp = tmp_path_factory.mktemp('inspected')
  draw(tmp / 'target', {'wood': (90, 60, 30), 'metal_nut': (60, 60, 90)})
  return tmp


@pytest.fixture
def drawn(monkeypatch):
  """What was asked of diagnostic_figures.tsne, in place of the slow layout."""
  found = []
  monkeypatch.setattr(plates, 'tsne', lambda *asked: found.append(asked) or b'png')
  return found


def opened(cfg):
  method = methods.get(cfg.method)
  clip = setup.load_clip(cfg, method)
  return method, clip, setup.open_data(cfg, 'target')


def test_class_tokens_are_laid_out_with_the_texts(folder, drawn):
  cfg = config(anomalyclip, folder, **{'report.tsne': True})
  method, clip, dataset = opened(cfg)
  learnable = jax.jit(functools.partial(method.init, clip=clip, cfg=cfg))(jax.random.key(0))
  made = diagnostics.figures(cfg, method, clip, learnable, dataset)
  assert list(made) == ['t-sne']
  (title, panels, seed), = drawn
  images, text = panels['class tokens and texts']
  assert dataset.name in title and seed == cfg.seed
  assert images.values.shape == (len(dataset), 128)
  np.testing.assert_array_equal(images.labels, dataset.labels)
  assert text.labels.tolist() == [0, 1]
  bank = jax.jit(functools.partial(method.bank, categories=('x',), clip=clip, cfg=cfg))(learnable, clip.params)
  np.testing.assert_allclose(text.values, bank[0], atol=1e-5)


def test_hidden_layers_are_laid_out_with_generated_sentences(folder, drawn):
  cfg = config(rwda, folder, **{'report.tsne': True, 'sentences.pairs': 6, 'seeds': 1})
  method, clip, dataset = opened(cfg)
  learnable = jax.jit(functools.partial(method.init, clip=clip, cfg=cfg))(jax.random.key(0))
  diagnostics.figures(cfg, method, clip, learnable, dataset)
  panels = drawn[0][1]
  assert list(panels) == ['embeddings', *(f'layer {i}' for i in range(1, 1 + len(cfg.fnn.hidden)))]
  for name, width in zip(panels, (128, *cfg.fnn.hidden)):
    told, images = panels[name]
    assert told.values.shape == (12, width) and images.values.shape == (len(dataset), width)
    assert told.labels.tolist() == [0, 1] * 6


def test_a_bank_of_something_else_is_left_out_and_said(folder, drawn):
  cfg = config(patchcore_clip, folder, **{'report.tsne': True})
  method, clip, dataset = opened(cfg)
  if not method.spec(clip, cfg).cls:
    with pytest.raises(ValueError, match='patchcore_clip reads no class token'):
      diagnostics.check(cfg, method, clip)
  else:
    _, words = diagnostics.figures(cfg, method, clip, {}, dataset)['t-sne']
    assert 'no single text' in words and list(drawn[0][1]) == ['class tokens']


def test_attention_is_drawn_for_an_anomalous_image_of_each_category(folder, monkeypatch):
  cfg = config(anomalyclip, folder, **{'report.attention': 2})
  method, clip, dataset = opened(cfg)
  items = []
  monkeypatch.setattr(plates, 'attention', lambda title, given: items.extend(given) or b'png')
  (_, words), = diagnostics.figures(cfg, method, clip, {}, dataset).values()
  assert 'block 2' in words and len(items) == 2
  for item in items:
    assert set(item.maps) == {'qk', 'qq', 'kk', 'vv'} and 'good' not in item.caption
    assert all(weights.shape == (clip.grid ** 2,) * 2 for weights in item.maps.values())


def test_the_patch_that_is_asked_holds_most_of_the_defect():
  mask = np.zeros((40, 80), np.uint8)
  mask[21:29, 62:70] = 255
  mask[0, 0] = 255
  assert diagnostics.asked(mask, 4) == (2, 3)
  assert diagnostics.asked(np.zeros((8, 8)), 5) == (2, 2)


@pytest.mark.parametrize('number, message', [(-1, '1..6'), (7, '1..6')])
def test_a_block_that_is_not_there_is_refused(number, message):
  cfg = SimpleNamespace(eval=SimpleNamespace(attention=number, tsne=False))
  with pytest.raises(ValueError, match=f'report.attention is {number}.*{message}'):
    diagnostics.check(cfg, None, clip_lib.Clip(clip_lib.find('tiny'), 64, None))


def test_a_resnet_has_no_attention_to_draw():
  cfg = SimpleNamespace(eval=SimpleNamespace(attention=1, tsne=False))
  resnet = next(arch for arch in clip_lib.ARCHS.values() if arch.vision.kind == 'resnet')
  with pytest.raises(ValueError, match='no vision transformer'):
    diagnostics.check(cfg, None, clip_lib.Clip(resnet, 224, None))


def test_plates_are_pictures_and_a_seed_fixes_the_plane():
  rng = np.random.default_rng(0)
  kinds = [diagnostic_figures.Points('image', rng.normal(size=(6, 5)), np.arange(6) % 2),
           diagnostic_figures.Points('text', rng.normal(size=(2, 5)), np.arange(2))]
  assert Image.open(io.BytesIO(diagnostic_figures.tsne('points', {'here': kinds}, 3))).format == 'PNG'
  values = rng.normal(size=(4, 3))
  np.testing.assert_array_equal(diagnostic_figures.plane(values, 0), diagnostic_figures.plane(10 * values, 0))
  maps = {mode: np.full((16, 16), 1 / 16) for mode in diagnostic_figures.MODES}
  item = diagnostic_figures.Attention(Image.new('RGB', (30, 20)), maps, (1, 2), 'a: b')
  assert Image.open(io.BytesIO(diagnostic_figures.attention('block', [item]))).format == 'PNG'
