"""A Spec's text names stores and checkpoints: it must not change where it says nothing new."""

from zsad_jax.spec import Features, Side, Spec, Tap


def test_text_is_that_of_the_fields_that_stores_were_written_with():
  spec = Spec(518, taps=(Tap('vv', 24),), sides=(Side('vv'),))
  assert repr(spec) == (
    "Spec(image_size=518, cls='proj', taps=(Tap(stream='vv', block=24, point='block'),), sides=(Side(name='vv', "
    "mode='vv', first_block=6, residual_base=True, reset_every=0, ffn=False),), read='ln_post_proj', "
    "positions='bilinear')")


def test_text_tells_windows_apart():
  one, two = Spec(240, windows=(2,)), Spec(240, windows=(2, 3))
  assert repr(two).endswith("positions='bilinear', windows=(2, 3))")
  assert len({repr(one), repr(two), repr(Spec(240))}) == 3
  assert eval(repr(two)) == two and hash(one) != hash(two)


def test_features_without_windows():
  assert Features(None, {}).windows == {}
