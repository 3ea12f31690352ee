"""The experiment's setup: sections and digests of configs, overrides, names of objects, CLIPs before their weights."""

import re
import types

import ml_collections as mlc
import numpy as np
import pytest
from small_experiments import config

from zsad_jax import data, methods
from zsad_jax.clip import archs
from zsad_jax.clip.model import Clip
from zsad_jax.configs import anomalyclip, april_gan, clip, common, coop, patchcore_clip, winclip
from zsad_jax.data import few_shot_references
from zsad_jax.experiment import config_files, setup
from zsad_jax.methods.parts import bounds

GROUPS = {setup.DATA, setup.EVALUATION, *setup.TRAINING, *setup.NO_EFFECT}


def test_sections_are_the_groups_asked_for_and_model_is_every_other_key():
  c = anomalyclip.get_config()
  assert setup.sections(c, 'eval') == {'eval': c.eval.to_dict()}
  assert setup.sections(mlc.FrozenConfigDict(c), 'eval') == setup.sections(c.to_dict(), 'eval')
  model = setup.sections(c, setup.MODEL)
  assert {'seed', 'clip', 'image_size', 'method', 'prompt', 'map', 'temperature'} <= model.keys()
  assert not model.keys() & GROUPS
  whole = setup.sections(c, *setup.RESULT)
  assert whole.keys() == set(c.keys()) - set(setup.NO_EFFECT)


def test_a_new_shared_key_outside_all_groups_is_part_of_the_model():
  """Every top-level key of common.base is listed, so that a new one is put into a group on purpose."""
  assert set(common.base().keys()) - GROUPS == {
    'seed', 'clip', 'arch', 'checkpoint', 'image_size', 'precision', 'feature_dtype', 'object_names'}
  for group in ('data', 'train', 'eval', 'predict', 'machine', 'report', 'bench', 'export'):
    assert group in GROUPS and isinstance(common.base()[group], mlc.ConfigDict)


def test_digests_depend_on_values_and_not_on_the_order_of_keys():
  assert setup.digest({'a': 1, 'b': (2, 3)}) == setup.digest({'b': [2, 3], 'a': 1})
  assert re.fullmatch('[0-9a-f]{16}', setup.digest({}))
  assert len({setup.digest(*parts) for parts in (({'a': 1},), ({'a': 2},), ({'a': 1}, 'x'), ({'a': '1'},))}) == 4


def test_only_keys_of_a_section_change_its_digest():
  cfg = mlc.FrozenConfigDict(anomalyclip.get_config())
  digest = lambda changes: setup.digest(setup.sections(setup.with_overrides(cfg, changes), *setup.RESULT))
  same = {'machine.data_dir': 'elsewhere', 'machine.eval_batch': 3, 'report.tsne': True, 'predict.fpr': .1, 'seeds': 4,
          'bench.images': 2, 'export.batch': 2, 'label': 'other'}
  for changes in (*({key: value} for key, value in same.items()), same):
    assert digest(changes) == digest({}), changes
  for key, value in {'seed': 5, 'data.target': 'visa', 'train.epochs': 3, 'optim.lr': .1, 'eval.aupr': 'trapezoid',
                     'map.sigma': 1., 'clip': 'tiny'}.items():
    assert digest({key: value}) != digest({}), key


def test_overrides_leave_the_original_and_refuse_keys_and_types_that_it_does_not_have():
  cfg = mlc.FrozenConfigDict(anomalyclip.get_config())
  changed = setup.with_overrides(cfg, {'optim.lr': .5, 'prompt.categories': ('a', 'b')})
  assert (changed.optim.lr, changed.prompt.categories) == (.5, ('a', 'b'))
  assert (cfg.optim.lr, cfg.prompt.categories) == (1e-3, ()) and setup.with_overrides(cfg, {}) == cfg
  with pytest.raises(KeyError, match='lrr'):
    setup.with_overrides(cfg, {'optim.lrr': .5})
  with pytest.raises(TypeError):
    setup.with_overrides(cfg, {'train.epochs': 'many'})


def test_a_schedule_follows_an_override_of_the_epochs():
  """configs/coop.py makes optim.epochs a reference to train.epochs, which a frozen config does not keep."""
  cfg = mlc.FrozenConfigDict(coop.get_config())
  for key in ('train.epochs', 'optim.epochs'):
    changed = setup.with_overrides(cfg, {key: 3})
    assert (changed.train.epochs, changed.optim.epochs) == (3, 3)
  assert setup.with_overrides(cfg, {'seed': 3}).optim.epochs == cfg.train.epochs


def test_bounds_are_of_keys_that_every_config_has_and_allow_its_values():
  for name in methods.names():
    cfg = config_files.load(name)
    method = setup.check(cfg)
    assert method is methods.get(name)
    for key, bound in {**setup.BOUNDS, **method.bounds}.items():
      assert bound.allows(bounds.value_of(cfg, key)), (name, key)


def test_a_clip_without_weights_is_of_the_configs_architecture(folders):
  cfg = config(anomalyclip, folders)
  shell = setup.clip_without_weights(cfg, methods.get('anomalyclip'))
  assert (shell.arch.name, shell.image_size, shell.params) == ('tiny', 56, None)


@pytest.mark.parametrize('act', ['gelu', 'quick_gelu'])
def test_a_method_may_change_the_activation(folders, act):
  method = methods.get('april_gan')
  assert setup.load_clip(config(april_gan, folders, act=act), method).arch.activation == act


def test_attention_is_drawn_of_blocks_that_the_tower_has(folders):
  method = methods.get('anomalyclip')
  setup.clip_without_weights(config(anomalyclip, folders, **{'report.attention': 6}), method)
  with pytest.raises(ValueError, match=r'report\.attention=7.*1\.\.6'):
    setup.clip_without_weights(config(anomalyclip, folders, **{'report.attention': 7}), method)


def test_a_resnet_has_no_attention_to_draw(monkeypatch, folders):
  method = methods.get('clip')
  resnet = next(arch for arch in archs.ARCHS.values() if arch.vision.kind == 'resnet')
  monkeypatch.setattr(setup.hub, 'architecture', lambda *args, **options: resnet)
  cfg = config(clip, folders, **{'report.attention': 1, 'image_size': resnet.vision.image_size})
  if 'resnet' not in method.traits.towers:
    pytest.skip('no training-free method reads a ResNet')
  monkeypatch.setattr(setup.encoder, 'validate', lambda *args: None)
  with pytest.raises(ValueError, match=r'report\.attention=1.*no transformer blocks.*0'):
    setup.clip_without_weights(cfg, method)


def test_tsne_needs_a_class_token(folders):
  cfg = config(patchcore_clip, folders, **{'report.tsne': True})
  assert not methods.get('patchcore_clip').feature_spec(Clip(archs.ARCHS['tiny'], 56, None), cfg).cls
  with pytest.raises(ValueError, match=r'report\.tsne=True.*patchcore_clip reads no class token'):
    setup.clip_without_weights(cfg, methods.get('patchcore_clip'))


def test_prompts_call_published_categories_by_their_folders_or_as_in_the_catalogue():
  visa = types.SimpleNamespace(name='visa', categories=('pcb1', 'pipe_fryum'),
                               object_names={'pcb1': 'printed circuit board', 'pipe_fryum': 'pipe fryum'})
  cfg = mlc.FrozenConfigDict(clip.get_config())
  assert setup.object_names(cfg, visa) == ('pcb1', 'pipe fryum')
  asked = setup.with_overrides(cfg, {'object_names': 'catalogue'})
  assert setup.object_names(asked, visa) == ('printed circuit board', 'pipe fryum')


def test_names_of_folders_have_spaces_unless_a_method_reads_them_raw(folders):
  dataset = data.load(f'folder:{folders}/target', root=folders / 'data')
  assert setup.object_names(config(clip, folders), dataset) == ('metal nut', 'wood')
  assert setup.object_names(config(winclip, folders), dataset) == ('metal_nut', 'wood')


def test_data_sets_are_opened_by_role_with_their_own_categories(folders):
  cfg = config(clip, folders, **{'data.aux_categories': 'tile', 'data.target_categories': 'wood, metal_nut'})
  assert setup.open_data(cfg, 'aux').categories == ('tile',)
  target = setup.open_data(cfg, 'target', 'train')
  assert target.categories == ('metal_nut', 'wood') and not target.labels.any() and len(target) == 6


def test_references_are_drawn_by_seed_and_category(folders):
  whole = data.load(f'folder:{folders}/target', root=folders / 'data', split='train')
  part = data.load(f'folder:{folders}/target', root=folders / 'data', split='train', categories=('wood',))
  indices = few_shot_references.draw(whole, 2, seed=0)
  assert indices.shape == (2, 2) and (whole.category_index[indices] == [[0], [1]]).all()
  np.testing.assert_array_equal(few_shot_references.draw(whole, 2, seed=0), indices)
  assert [part.ids[i] for i in few_shot_references.draw(part, 2, seed=0)[0]] == [whole.ids[i] for i in indices[1]]
  assert len({tuple(few_shot_references.draw(whole, 2, seed=s)[0]) for s in range(20)}) == 3
  assert few_shot_references.draw(whole, 50, seed=0, replacement=True).shape == (2, 50)
