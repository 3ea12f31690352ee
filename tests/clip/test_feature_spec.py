"""A FeatureSpec's text names stores and checkpoints and must not change where it says nothing new; what layers may be."""

import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, FeatureSpec, SideStream, Tap, check_layers


def test_text_is_that_of_the_fields_that_stores_were_written_with():
  spec = FeatureSpec(518, taps=(Tap('vv', 24),), sides=(SideStream('vv'),))
  assert repr(spec) == (
    "Spec(image_size=518, cls='proj', taps=(Tap(stream='vv', block=24, point='block'),), sides=(SideStream(name='vv', "
    "mode='vv', first_block=6, residual_base=True, reset_every=0, ffn=False),), read='ln_post_proj', "
    "positions='bilinear')")


def test_text_tells_windows_apart():
  one, two = FeatureSpec(240, windows=(2,)), FeatureSpec(240, windows=(2, 3))
  assert repr(two).endswith("positions='bilinear', windows=(2, 3))")
  assert len({repr(one), repr(two), repr(FeatureSpec(240))}) == 3
  assert eval(repr(two)) == two and hash(one) != hash(two)


def test_text_tells_taps_apart():
  plain, cls = Tap('clip', 4, 'attention'), Tap('clip', 4, 'attention', 'cls', 'ln_post_proj')
  assert repr(plain) == "Tap(stream='clip', block=4, point='attention')"
  assert repr(cls) == "Tap(stream='clip', block=4, point='attention', token='cls', read='ln_post_proj')"
  assert eval(repr(cls)) == cls and plain.name != cls.name and plain.name == 'clip/4/attention'


def test_text_tells_crops_apart():
  plain = FeatureSpec(240, cls='ln_post_proj', positions='bicubic', windows=(2,))
  cropped = plain._replace(crops=270)
  assert repr(cropped) == f'{repr(plain)[:-1]}, crops=270)' and eval(repr(cropped)) == cropped


def test_crops_have_a_spec_of_their_own():
  """Whatever else is read of the whole image, the crops of it are the same."""
  one = FeatureSpec(240, cls='ln_post_proj', positions='bicubic', windows=(2,), crops=270)
  other = FeatureSpec(240, cls='ln_post_proj', positions='bicubic', taps=(Tap('clip', 3),), read='none', crops=270)
  assert repr(one.of_crops()) == repr(other.of_crops()) != repr(one)
  for change in (dict(image_size=224), dict(cls='proj'), dict(positions='bilinear'), dict(crops=290)):
    assert repr(one._replace(**change).of_crops()) != repr(one.of_crops())


def test_features_without_windows_and_crops():
  assert Features(None, {}).windows == {} and Features(None, {}).crops is None


@pytest.mark.parametrize('layers', [(), (2, 2), (0, 3), (3, 7)])
def test_bad_layers(layers):
  tiny = clip_lib.Clip(clip_lib.ARCHS['tiny'], 16, params=None)
  with pytest.raises(ValueError, match=r'are not different blocks in 1\.\.6, those of tiny'):
    check_layers(tiny, layers)
