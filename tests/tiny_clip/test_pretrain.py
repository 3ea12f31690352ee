"""Pretraining of a very small tower: the loss falls, a killed run resumes exactly, and the export loads as a CLIP."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.configs import pretrain_tiny
from zsad_jax.data import synthetic
from zsad_jax.data.synthetic import pretraining
from zsad_jax.tiny_clip import losses, pretrain

TINY = Path(__file__).parents[2] / 'checkpoints' / 'tiny'


@pytest.fixture(scope='module')
def cfg():
  c = pretrain_tiny.get_config()
  c.arch = mlc.ConfigDict(dict(image_size=32, patch=8, width=16, layers=2, heads=2, embed=16, context=77, text_width=16,
                               text_layers=1, text_heads=2))
  c.phases = mlc.ConfigDict(dict(steps=(2, 2), image_size=(32, 32), batch=(8, 8), crop=((.5, 1.), (.9, 1.))))
  c.side_taps = (1, 2)
  c.optim.update(lr=3e-3, warmup=1)
  c.pool.update(count=19, size=32)
  c.probe.update(count=6, every=4)
  c.save_seconds = 0.
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module')
def world(cfg):
  """The data module of pretraining, drawing its batches in this process instead of in others."""
  chunk, words = pretraining.draw('pretrain', 0, 19, 32, 0), pretraining.vocabulary('pretrain')

  def batches(tokenizer, folder, *, phases, pool, patch, seed, start):
    for step in range(start, sum(phases.steps)):
      yield pretraining.batch_of(chunk, words, tokenizer, np.random.default_rng([seed, step]), batch=phases.batch[0],
                                 image_size=phases.image_size[0], patch=patch, crop=phases.crop[0])

  return SimpleNamespace(batches=batches, draw=pretraining.draw, encode=pretraining.encode,
                         tokenizer=functools.cache(pretraining.tokenizer), vocabulary=pretraining.vocabulary)


@pytest.fixture(scope='module')
def parts(cfg, world):
  tokenizer = world.tokenizer(cfg.merges)
  clip = clip_lib.Clip(pretrain.architecture(cfg, tokenizer.get_vocab_size()), 32, None)
  batch = next(world.batches(tokenizer, '', phases=cfg.phases, pool=cfg.pool, patch=8, seed=0, start=0))
  return clip, pretrain.init(clip, pretrain.optimizer(cfg), 0).params, batch


@pytest.mark.slow
def test_steps_lower_the_loss_on_a_fixed_batch(cfg, parts):
  clip, _, batch = parts
  tx = pretrain.optimizer(cfg)
  step, state = pretrain.make_step(clip, tx, cfg), pretrain.init(clip, tx, 0)
  spec, totals = pretrain.specs(cfg, 32)[1], []
  for _ in range(5):
    state, metrics = step(state, batch, spec=spec)
    totals.append(float(metrics['loss']))
  assert totals[-1] < totals[0] - .05 and int(state.step) == 5
  assert step._cache_size() == 1


@pytest.mark.slow
def test_updates_of_the_image_towers_matrices_are_orthogonal(cfg, parts):
  params, tx = parts[1], pretrain.optimizer(cfg)
  grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
  zeros = jax.tree.map(jnp.zeros_like, params)  # weight decay does not change zeros
  state = jax.jit(tx.init)(zeros)
  for _ in range(2):  # the first step is warm-up at rate 0
    updates, state = jax.jit(tx.update)(grads, state, zeros)
  flat = lambda tower, *names: np.asarray(functools.reduce(lambda tree, name: tree[name], names, updates[tower]))
  evenness = lambda x: np.quantile(np.linalg.svd(x, compute_uv=False), .25) / np.linalg.norm(x, 2)
  qkv = flat('visual', 'blocks', 'attn', 'qkv', 'kernel')  # [layers, D, 3, H, d]
  matrices = [qkv[1, :, i].reshape(16, 16) for i in range(3)]
  matrices += [flat('visual', *names).reshape(-1, 16) for names in (('proj', 'kernel'), ('patch_embed', 'kernel'))]
  matrices += [flat('visual', 'blocks', 'attn', 'out', 'kernel')[0].reshape(16, 16),
               flat('visual', 'blocks', 'mlp', 'c_fc', 'kernel')[1]]
  assert min(evenness(m) for m in matrices) > .5
  assert evenness(np.asarray(grads['text']['text_projection']['kernel'])) < .4
  # For a constant gradient, all of Adam's updates have the same size.
  sizes = np.abs(flat('text', 'text_projection', 'kernel'))
  np.testing.assert_allclose(sizes, sizes.mean(), rtol=1e-3)


@pytest.mark.slow
def test_training_can_start_from_other_weights(cfg, parts, world, tmp_path):
  clip, tokenizer = parts[0], world.tokenizer(cfg.merges)
  tx = pretrain.optimizer(cfg)
  params = pretrain.init(clip, tx, 7).params
  pretrain.export(tmp_path, clip, params, tokenizer)
  state = pretrain.init(clip, tx, 0, str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  jax.tree.map(np.testing.assert_array_equal, state.mean, params)
  wider = clip_lib.Clip(clip_lib.Arch('tiny', 24, clip.arch.vision, clip.arch.text), 32, None)
  with pytest.raises(ValueError, match=r'start=.* has the weights of another architecture'):
    pretrain.init(wider, tx, 0, str(tmp_path))


@pytest.mark.slow
def test_every_parameter_has_a_gradient(cfg, parts):
  clip, params, batch = parts
  value = functools.partial(losses.loss, clip=clip, spec=pretrain.specs(cfg, 32)[0], cfg=cfg)
  grads = jax.jit(jax.grad(lambda p: value(p, batch)[0]))(params)
  zeros = [jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_leaves_with_path(grads) if not jnp.abs(g).max() > 0]
  assert not zeros


@pytest.mark.slow
def test_undecided_labels_are_ignored(cfg, parts):
  clip, params, batch = parts
  spec = pretrain.specs(cfg, 32)[0]
  known = batch['known'] * np.array([0] + [1] * 7, np.float32)
  flipped = batch['label'].copy()
  flipped[0] = 1 - flipped[0]
  value = functools.partial(losses.loss, clip=clip, spec=spec, cfg=cfg)
  state = jax.jit(lambda **changed: value(params, dict(batch, **changed))[1]['state'])
  assert state(known=known, label=batch['label']) == state(known=known, label=flipped)
  assert state(known=batch['known'], label=batch['label']) != state(known=batch['known'], label=flipped)


def test_contrast_spreads_over_all_true_captions():
  logits = jnp.log(jnp.array([[.5, .3, .2], [.1, .1, .8]]))
  true = jnp.array([[1., 1., 0.], [0., 0., 0.]])
  np.testing.assert_allclose(losses._contrast_loss(logits, true), -(np.log(.5) + np.log(.3)) / 2, rtol=1e-6)


def test_both_states_have_the_same_weight():
  logits, targets = jnp.array([0., 0., 2., 5.]), jnp.array([0., 0., 1., 1.])
  weight = jnp.array([1., 1., 1., 0.])
  expected = (np.log(2) + np.log1p(np.exp(-2))) / 2
  np.testing.assert_allclose(losses._state_loss(logits, targets, weight), expected, rtol=1e-6)


def test_defective_patches_are_compared_with_their_normal_twins():
  logits = jnp.array([[1., 0., 0., 0.], [2., -1., 0., 5.]])
  cover = jnp.array([[0., 0., 0., 0.], [.5, 0., 0., .05]])
  cost = lambda x, y: np.log1p(np.exp(-x if y else x))
  normal = np.mean([cost(0, 0)] * 3 + [cost(-1, 0), cost(0, 0)])  # a patch with few defect pixels is ignored
  expected = cost(2, 1) / 2 + cost(1, 0) / 4 + normal / 4
  np.testing.assert_allclose(losses._patch_loss(logits, cover), expected, rtol=1e-6)


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(cfg, world, tmp_path):
  class Killed(Exception):
    pass

  def until(stop):
    def batches(*args, start, **kwargs):
      for step, batch in enumerate(world.batches(*args, start=start, **kwargs), start):
        if step == stop:
          raise Killed
        yield batch
    return SimpleNamespace(**{**vars(world), 'batches': batches})

  pretrain.fit(cfg, tmp_path / 'straight', world)
  with pytest.raises(Killed):
    pretrain.fit(cfg, tmp_path / 'broken', until(3))
  stale = {'step': 4, 'images': 0}
  with (tmp_path / 'broken' / 'curve.jsonl').open('a') as file:
    file.write(json.dumps(stale) + '\n')
  pretrain.fit(cfg, tmp_path / 'broken', world)
  name = 'state.safetensors'
  assert (tmp_path / 'straight' / name).read_bytes() == (tmp_path / 'broken' / name).read_bytes()
  curve = [json.loads(line) for line in (tmp_path / 'straight' / 'curve.jsonl').read_text().splitlines()]
  assert [(line['step'], line['images']) for line in curve] == [(4, 32)]
  resumed = [json.loads(line) for line in (tmp_path / 'broken' / 'curve.jsonl').read_text().splitlines()]
  assert [line['image_vv_noun'] for line in resumed] == [line['image_vv_noun'] for line in curve]
  assert 0 <= curve[0]['image_clip_object'] <= 100 and 0 <= curve[0]['pixel_vv_noun'] <= 100
  _check_export(tmp_path / 'straight' / 'export', world)


def _check_export(folder, world):
  clip = clip_lib.load(folder)
  assert clip.arch.vision.layers == 2 and clip.image_size == 32
  texts = ['a photo of a damaged object.', 'gear']
  np.testing.assert_array_equal(clip.tokenize(texts), world.encode(world.tokenizer(3072), texts, 77))


@pytest.mark.slow
def test_the_state_of_another_run_is_refused(cfg, parts, world, tmp_path):
  clip = parts[0]
  tx = pretrain.optimizer(cfg)
  state = pretrain.init(clip, tx, 0)
  pretrain.save(tmp_path / 'state.safetensors', state)
  wider = clip_lib.Clip(clip_lib.Arch('tiny', 24, clip.arch.vision, clip.arch.text), 32, None)
  with pytest.raises(ValueError, match=r'state\.safetensors is the state of another architecture'):
    pretrain.restore(tmp_path / 'state.safetensors', pretrain.init(wider, tx, 0))
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match=r'tokenizer\.json is not the tokenizer of these captions'):
    pretrain.fit(cfg, tmp_path, world)


def test_the_embedded_clip_loads():
  clip = clip_lib.load('tiny')
  assert clip.grid >= 12 and clip.arch.vision.layers >= 6
  assert sum(f.stat().st_size for f in TINY.iterdir()) <= 25 * 2**20
  vocab = clip.arch.text.vocab
  ids = clip.tokenize(['damaged object'])
  assert ids.shape == (1, clip.arch.text.context) and ids[0, 0] == vocab - 2 and ids[0, 3] == vocab - 1


@pytest.mark.slow
def test_the_embedded_clip_detects_defects_of_new_categories(cfg):
  """Of twelve auxiliary twins, the patches of the defect move towards 'damaged object', the others hardly at all."""
  clip = clip_lib.load('tiny')
  full = pretrain_tiny.get_config()
  spec = pretrain.specs(full, clip.image_size)[0]
  chunk = pretraining.draw('aux', 0, 12, clip.image_size, 1, 'test')
  images = losses.normalise(chunk.image.reshape(-1, *chunk.image.shape[2:]), clip)
  taps = np.asarray(clip.image(clip.params, images, spec).taps[spec.taps[-1].name])
  ids = clip.tokenize(['a photo of a object.', 'a photo of a damaged object.'])
  text = np.asarray(clip.text(clip.params, clip.embed(clip.params, ids), clip.eot(ids)))
  text = text / np.linalg.norm(text, axis=-1, keepdims=True)
  score = (taps / np.linalg.norm(taps, axis=-1, keepdims=True)) @ (text[1] - text[0])
  rise = (score[1::2] - score[::2]).reshape(12, clip.grid, clip.grid)
  cover = np.stack([pretraining._share(m, None, clip.grid) for m in chunk.mask])
  assert rise[cover > .3].mean() > .02 and abs(rise[cover == 0].mean()) < rise[cover > .3].mean() / 4


def test_config_trains_only_on_the_pretraining_group():
  c = pretrain_tiny.get_config()
  nouns = set(pretraining.vocabulary('pretrain').nouns)
  assert c.source == pretraining.__name__ and c.probe.group == 'aux'
  assert not nouns & {k.noun for g in ('aux', 'target') for k in synthetic.group(g)}
