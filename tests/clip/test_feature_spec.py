"""Feature specs: their text tells different features apart, crops share a spec, and layers are checked."""

import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, FeatureSpec, SideStream, Tap, check_layers

PLAIN = FeatureSpec(240, cls='ln_post_proj', positions='bicubic', taps=(Tap('clip', 4),), sides=(SideStream('vv'),))
CHANGES = (dict(image_size=224), dict(cls='proj'), dict(positions='bilinear'), dict(read='none'), dict(windows=(2,)),
           dict(windows=(2, 3)), dict(crops=270), dict(taps=(Tap('clip', 4, 'attention'),)),
           dict(taps=(Tap('clip', 4, token='cls'),)), dict(taps=(Tap('clip', 4, read='proj'),)),
           dict(sides=(SideStream('vv', first_block=7),)))


def test_text_identifies_a_spec():
  """Feature stores are keyed by this text."""
  specs = [PLAIN, *(PLAIN._replace(**change) for change in CHANGES)]
  assert len({repr(spec) for spec in specs}) == len(specs)
  for spec in specs:
    assert eval(repr(spec)) == spec and hash(eval(repr(spec))) == hash(spec)


def test_taps_have_readable_unique_names():
  taps = {'clip/4/block': Tap('clip', 4), 'vv/4/attention': Tap('vv', 4, 'attention'),
          'clip/4/block/cls': Tap('clip', 4, token='cls'), 'clip/4/block/proj': Tap('clip', 4, read='proj'),
          'clip/4/attention/cls/ln_post_proj': Tap('clip', 4, 'attention', 'cls', 'ln_post_proj')}
  assert {tap.name: tap for tap in taps.values()} == taps


def test_crops_have_a_spec_of_their_own():
  """The same crops are shared, whatever else is read of the whole image."""
  one = FeatureSpec(240, cls='ln_post_proj', positions='bicubic', windows=(2,), crops=270)
  other = FeatureSpec(240, cls='ln_post_proj', positions='bicubic', taps=(Tap('clip', 3),), read='none', crops=270)
  assert one.of_crops() == other.of_crops() != one
  for change in (dict(image_size=224), dict(cls='proj'), dict(positions='bilinear'), dict(crops=290)):
    assert one._replace(**change).of_crops() != one.of_crops()


def test_features_have_no_windows_and_crops_by_default():
  assert Features(None, {}).windows == {} and Features(None, {}).crops is None


@pytest.mark.parametrize('layers', [(), (2, 2), (0, 3), (3, 7)])
def test_layers_must_be_unique_blocks_of_the_tower(layers):
  tiny = clip_lib.Clip(clip_lib.ARCHS['tiny'], 16, params=None)
  with pytest.raises(ValueError, match=r'layers must be unique .*\[1, 6\]; got \('):
    check_layers(tiny, layers)


def test_layers_may_be_in_any_order():
  check_layers(clip_lib.Clip(clip_lib.ARCHS['tiny'], 16, params=None), (6, 1, 3))
