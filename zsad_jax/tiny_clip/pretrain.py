"""Pretraining of the tiny CLIP: images with captions, and where the damage is.

Three terms, all through the towers' ordinary read-outs:
  contrast  image against caption, both ways; the batch's captions in both states, so that each image meets its own
            caption with the opposite state.  A caption that happens to be true of another image is no negative.
  state     image against its own caption pair, normal or anomalous.
  patch     patch tokens against the same pair: is there damage in this patch?  Contrast alone does not find it.
"""

import functools
import importlib
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from absl import logging
from optax import contrib
from PIL import Image
from sklearn.metrics import roc_auc_score

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap
from zsad_jax.clip.weights import arch_config, port
from zsad_jax.engine import runtime
from zsad_jax.ops import maps


class State(NamedTuple):
  """Everything that a step changes: step [] int32, parameters, their running mean, optimizer state."""
  step: Any
  params: Any
  mean: Any
  opt: Any


def specs(cfg, image_size: int) -> tuple[FeatureSpec, ...]:
  """What training reads, one FeatureSpec after another from step to step: the class token with and without ln_post.

  Patch tokens come from the V-V stream. CLIP's own patch tokens are read by no term: as in real CLIP, nothing makes
  them say what they show.
  """
  side = SideStream('vv', 'vv', first_block=cfg.side_first_block)
  taps = tuple(Tap('vv', b) for b in cfg.side_taps)
  return tuple(FeatureSpec(image_size, cls, taps, (side,)) for cls in ('ln_post_proj', 'proj'))


def architecture(cfg, vocab: int) -> clip_lib.Arch:
  """The tiny architecture that `cfg.arch` describes, with a text vocabulary of that many tokens."""
  a = cfg.arch
  return clip_lib.Arch('tiny', a.embed, clip_lib.Vision(a.image_size, a.patch, a.width, a.layers, a.heads),
                       clip_lib.Text(a.context, vocab, a.text_width, a.text_layers, a.text_heads))


def _normalise(images, clip):
  mean, std = (jnp.array(x, jnp.float32)[None, None, None] for x in (clip.arch.mean, clip.arch.std))
  return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def _binary(logits, targets, weight):
  """Mean sigmoid cross-entropy over entries of weight > 0, anomalous and normal ones counted alike."""
  loss = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
  means = [(loss * w).sum() / jnp.maximum(w.sum(), 1.) for w in (weight * targets, weight * (1 - targets))]
  return (means[0] + means[1]) / 2


def loss(params, batch, *, clip, spec: FeatureSpec, cfg):
  """Weighted sum of the three terms, and each: (scalar, {name: scalar}).

  Args:
    params: CLIP parameter tree.
    batch: image [B, R, R, 3] uint8, two of each scene; ids [B, L] int32, B / 2 normal texts, one for each scene, then
      its anomalous ones; true [B, B] bool; label [B] float; known [B] float (0 where the crop leaves the label open);
      cover [B, G, G] float share of damaged pixels.
  """
  images = _normalise(batch['image'], clip)
  features = clip.image(params, images, spec)
  text = maps.normalize(clip.text(params, clip.embed(params, batch['ids']), clip.eot(batch['ids'])))
  good, bad = (jnp.repeat(side, 2, axis=0) for side in jnp.split(text, 2))
  image = maps.normalize(features.cls)
  scale = jnp.exp(jnp.minimum(params['logit_scale'], np.log(100.)))

  logits, true = scale * image @ text.T, batch['true'] * batch['known'][:, None]     # [B, B]
  contrast = (_multiple(logits, true) + _multiple(logits.T, true.T)) / 2
  state = _binary(scale * (image * (bad - good)).sum(-1), batch['label'], batch['known'])

  cover = batch['cover'].reshape(images.shape[0], -1)
  patch = 0.
  for tokens in features.taps.values():
    score = jnp.einsum('bne,be->bn', maps.normalize(tokens), bad - good) / cfg.temperature
    patch += _damage(score, cover) / len(features.taps)
  total = cfg.weight.contrast * contrast + cfg.weight.state * state + cfg.weight.patch * patch
  return total, dict(loss=total, contrast=contrast, state=state, patch=patch)


def _damage(logits, cover):
  """Mean sigmoid cross-entropy of patch logits [B, N]: half damaged patches, a quarter the same patches of the flawless
  twin, a quarter all other flawless ones.

  Most flawless patches are plain ground; without the twins' share, telling things from ground would do.

  Args:
    logits: of damage; rows 2 i and 2 i + 1 are a flawless image and its spoiled twin.
    cover: [B, N] share of damaged pixels; patches with little damage count on neither side.
  """
  damaged = cover > .1
  twins = jnp.repeat(damaged[1::2], 2, axis=0) & (cover == 0)
  flawless = (cover == 0) & ~twins
  loss = optax.losses.sigmoid_binary_cross_entropy(logits, damaged * 1.)
  mean = lambda which: (loss * which).sum() / jnp.maximum(which.sum(), 1)
  return mean(damaged) / 2 + (mean(twins) + mean(flawless)) / 4


def _multiple(logits, true):
  """Cross-entropy of softmax rows against all entries that are true, spread evenly; rows with none weigh nothing."""
  count = true.sum(1)
  log = jax.nn.log_softmax(logits, 1)
  return -((log * true).sum(1) / jnp.maximum(count, 1)).sum() / jnp.maximum((count > 0).sum(), 1)


def optimizer(cfg) -> optax.GradientTransformation:
  """Muon for the image tower's matrices, Adam for the rest, both with Nesterov's momentum.

  The rate warms up and falls linearly, and is constant in between. Muon's updates are scaled to the root mean square
  of Adam's (arXiv 2502.16982), so that both take the same rate.
  """
  total = sum(cfg.phases.steps)
  falls = max(int(total * (1 - cfg.optim.fall)), cfg.optim.warmup)
  rate = optax.join_schedules([optax.linear_schedule(0., cfg.optim.lr, cfg.optim.warmup),
                               optax.constant_schedule(cfg.optim.lr),
                               optax.linear_schedule(cfg.optim.lr, cfg.optim.lr * .02, total - falls)],
                              [cfg.optim.warmup, falls])
  muon = contrib.muon(rate, weight_decay=cfg.optim.decay, consistent_rms=.2, adam_b2=.98,
                      muon_weight_dimension_numbers=_matrices)
  return optax.chain(optax.clip_by_global_norm(1.), muon)


def _matrices(params):
  """Which axes of the image tower's weights are rows and columns of matrices; others count them (layers; q, k, v)."""
  sides = {('patch_embed', 4): ((0, 1, 2), (3,)), ('qkv', 5): ((1,), (3, 4)), ('out', 4): ((1, 2), (3,)),
           ('c_fc', 3): ((1,), (2,)), ('c_proj', 3): ((1,), (2,)), ('proj', 2): ((0,), (1,))}

  def of(path, x):
    names = [key.key for key in path]
    found = sides.get((names[-2], x.ndim)) if names[0] == 'visual' else None
    return contrib.MuonDimensionNumbers(*found) if found else None
  return jax.tree_util.tree_map_with_path(of, params)


def make_step(clip, tx, cfg):
  """step(state, batch, spec) -> state, metrics; the running mean of the parameters is what gets exported."""
  @functools.partial(jax.jit, static_argnames='spec', donate_argnums=0)
  def step(state, batch, *, spec):
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch, clip=clip, spec=spec, cfg=cfg)
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = jnp.minimum(cfg.optim.mean, (1. + state.step) / (10. + state.step))
    mean = jax.tree.map(lambda m, p: m * keep + p * (1 - keep), state.mean, params)
    return State(state.step + 1, params, mean, opt), dict(metrics, grad_norm=optax.tree.norm(grads))
  return step


def init(clip, tx, seed: int, start: str = '') -> State:
  """A fresh State: random parameters, or those of the folder `start`.

  Raises:
    ValueError: `start` holds the weights of another architecture.
  """
  params = jax.jit(functools.partial(clip_lib.init_params, clip.arch))(jax.random.key(seed))
  if start:
    found = clip_lib.load(start).params
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, params):
      raise ValueError(f'start: {start} holds the weights of another architecture than cfg.arch and the tokenizer of '
                       'these captions give')
    params = jax.tree.map(jnp.asarray, found)
  return State(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), tx.init(params))


def encoders(clip, cfg):
  """What `probe` reads with: ([(FeatureSpec, images -> Features)] of CLIP's own and the V-V stream, ids -> text features).

  Jitted once for all probes: a tower that is called without compiles anew each time, until the memory maps run out.
  """
  own = FeatureSpec(clip.image_size, 'ln_post_proj', (Tap('clip', cfg.arch.layers),))
  jitted = lambda spec: jax.jit(functools.partial(clip.image, spec=spec))
  text = jax.jit(lambda params, ids: clip.text(params, clip.embed(params, ids), clip.eot(ids)))
  return [(spec, jitted(spec)) for spec in (own, specs(cfg, clip.image_size)[1])], text


def probe(clip, read, params, chunk, nouns, tokenize) -> dict[str, float]:
  """Zero-shot AUROC in percent, means over held-out categories: image by class token, pixel by each stream's last tap.

  Prompts: three templates with 'object' or the noun, normal against 'damaged'; no score is tuned.
  """
  templates, result = ('a photo of a {}.', 'a close-up photo of the {}.', '{}.'), {}
  images = chunk.image.reshape(-1, *chunk.image.shape[2:])
  readers, encode_texts = read
  encode_texts = functools.partial(encode_texts, params)
  for spec, encode_images in readers:
    parts = np.array_split(images, max(len(images) // 48, 1))
    found = [encode_images(params, _normalise(part, clip)) for part in parts]
    cls = np.concatenate([f.cls for f in found])
    taps = np.concatenate([f.taps[spec.taps[-1].name] for f in found])
    for which in ('object', 'noun'):
      words = nouns if which == 'noun' else None
      image, patch = _scores(encode_texts, cls, taps, chunk.category, words, templates, tokenize)
      name = f'{spec.taps[-1].stream}_{which}'
      result.update({f'image_{name}': _image_auroc(image, chunk), f'pixel_{name}': _pixel_auroc(patch, chunk)})
  return result


def _scores(encode, cls, taps, category, nouns, templates, tokenize):
  """Cosine with the anomalous text less that with the normal one: of images [n, 2], of patches [n, 2, G, G]."""
  category = np.repeat(category, 2)
  direction = []
  for noun in nouns or ('object',):
    sides = []
    for form in ('{}', 'damaged {}'):
      ids = tokenize([t.format(form.format(noun)) for t in templates])
      text = maps.normalize(encode(ids))
      sides.append(np.asarray(maps.normalize(text.mean(0))))
    direction.append(sides[1] - sides[0])
  direction = np.stack(direction)[category if nouns else np.zeros_like(category)]
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  grid = round(taps.shape[1] ** .5)
  image = (unit(cls) * direction).sum(-1).reshape(-1, 2)
  return image, np.einsum('bne,be->bn', unit(taps), direction).reshape(-1, 2, grid, grid)


def _image_auroc(scores, chunk) -> float:
  kinds = np.unique(chunk.category)
  of = lambda k: scores[chunk.category == k]
  return float(np.mean([100 * roc_auc_score(np.tile([0, 1], len(of(k))), of(k).reshape(-1)) for k in kinds]))


def _pixel_auroc(scores, chunk) -> float:
  """Over spoiled and flawless images; patch scores are enlarged bilinearly."""
  side, found = chunk.mask.shape[1], []
  for k in np.unique(chunk.category):
    rows = np.flatnonzero(chunk.category == k)
    large = [[np.asarray(Image.fromarray(m.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))
              for m in scores[r]] for r in rows]
    truth = np.stack([np.zeros_like(chunk.mask[rows]), chunk.mask[rows]], 1)
    found.append(100 * roc_auc_score(truth.reshape(-1), np.stack(large).reshape(-1)))
  return float(np.mean(found))


def save(path, state: State):
  """Writes a State to a safetensors file, whole or not at all."""
  path = pathlib.Path(path)
  leaves = {f'{i:04d}': np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
  runtime.write_atomic(path, safetensors.numpy.save(leaves))


def restore(path, template: State) -> State:
  """State from a file of `save`; ValueError where its leaves are not those of `template`."""
  leaves, tree = jax.tree.flatten(template)
  found = safetensors.numpy.load_file(path)
  if [x.shape for x in leaves] != [found[k].shape for k in sorted(found)]:
    raise ValueError(f'{path} is the state of another architecture or optimizer: remove it to start afresh')
  return jax.tree.unflatten(tree, [jnp.asarray(found[k]) for k in sorted(found)])


def export(folder, clip, params, tokenizer):
  """Writes model.safetensors (open_clip names, fp32), config.json and tokenizer.json, as clip.load reads them."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  port.write_safetensors(folder / 'model.safetensors', port.unport(jax.device_get(params), 'open_clip'))
  for name, text in (('config.json', json.dumps(arch_config.arch_to_json(clip.arch), indent=2) + '\n'),
                     ('tokenizer.json', tokenizer.to_str(pretty=True) + '\n')):
    runtime.write_atomic(folder / name, text.encode())


def fit(cfg, workdir, source) -> None:
  """Trains to the end of the last phase, resuming from workdir/state.safetensors; exports to workdir/export.

  Args:
    cfg: configs/pretrain_tiny.py.
    workdir: state, curve.jsonl (one line per probe) and export go here.
    source: module that draws and captions images, zsad_jax.data.synthetic.pretraining.

  Raises:
    ValueError: workdir holds the run of another architecture or tokenizer.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  tokenizer = source.tokenizer(cfg.merges)
  tokenize = functools.partial(source.encode, tokenizer, length=cfg.arch.context)
  _keep(workdir / 'tokenizer.json', tokenizer.to_str(pretty=True) + '\n')
  arch = architecture(cfg, tokenizer.get_vocab_size())
  clip = clip_lib.Clip(arch, arch.vision.image_size, None, unroll=True)
  tx = optimizer(cfg)
  step_fn, path = make_step(clip, tx, cfg), workdir / 'state.safetensors'
  state = init(clip, tx, cfg.seed, '' if path.exists() else cfg.start)
  if path.exists():
    state = restore(path, state)
  _cut(workdir / 'curve.jsonl', int(state.step))
  held_out = source.draw(cfg.probe.group, 0, cfg.probe.count, cfg.pool.size, cfg.seed, 'probe')
  nouns, read = source.vocabulary(cfg.probe.group).nouns, encoders(clip, cfg)
  step, sums, began = int(state.step), [], time.monotonic()
  saved = began
  for batch in source.batches(tokenizer, workdir / 'pool', phases=cfg.phases, pool=cfg.pool, patch=cfg.arch.patch,
                              seed=cfg.seed, start=step):
    options = specs(cfg, batch['image'].shape[1])
    state, metrics = step_fn(state, batch, spec=options[step % len(options)])
    step += 1
    sums.append(jax.device_get(metrics))
    if step % cfg.probe.every == 0:
      line = dict(step=step, images=seen(cfg, step), image_size=batch['image'].shape[1],
                  seconds=time.monotonic() - began, **{k: float(np.mean([s[k] for s in sums])) for k in sums[0]},
                  **probe(clip, read, state.mean, held_out, nouns, tokenize))
      with (workdir / 'curve.jsonl').open('a') as file:
        file.write(json.dumps({k: round(v, 4) for k, v in line.items()}) + '\n')
      logging.info('%s', line)
      export(workdir / 'export', clip, state.mean, tokenizer)
      sums = []
    if time.monotonic() - saved > cfg.save_seconds:
      save(path, state)
      saved = time.monotonic()
  save(path, state)
  export(workdir / 'export', clip, state.mean, tokenizer)


def _cut(path, step: int) -> None:
  """Drops the lines of a curve that lie beyond `step`: they were written after the state that is gone on from."""
  if path.exists():
    lines = [line for line in path.read_text().splitlines(True) if json.loads(line)['step'] <= step]
    runtime.write_atomic(path, ''.join(lines).encode())


def _keep(path, text: str) -> None:
  """Writes `text` to a new file; raises ValueError where the file holds something else."""
  if not path.exists():
    runtime.write_atomic(path, text.encode())
  elif path.read_text() != text:
    raise ValueError(f'{path} is not the tokenizer that these captions give: this run belongs to another version. '
                     'Use a new workdir')


def seen(cfg, step: int) -> int:
  """Images that the first `step` steps train on."""
  firsts = np.cumsum((0, *cfg.phases.steps))
  return int(sum(min(max(step - first, 0), n) * b for first, n, b in zip(firsts, cfg.phases.steps, cfg.phases.batch)))


def run(cfg, workdir) -> None:
  """Pretrains as `cfg` (configs/pretrain_tiny.py) says, on the data module that it names; see `fit`."""
  fit(cfg, workdir, importlib.import_module(cfg.source))
