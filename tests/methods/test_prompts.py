"""The prompt lists are the published ones."""

import hashlib

from zsad_jax.methods.parts import prompts


def digest(lines):
  return hashlib.sha256('|'.join(lines).encode()).hexdigest()[:16]


def test_imagenet_templates_are_80_sentences_with_one_place_each():
  templates = prompts.IMAGENET_TEMPLATES
  assert len(templates) == len(set(templates)) == 80
  assert all(t.count('{}') == 1 and t.endswith('.') and t == t.lower() for t in templates)
  assert templates[0] == 'a bad photo of a {}.' and templates[-1] == 'a tattoo of the {}.'


def test_compound_templates_are_30_of_imagenets_and_five_scenes():
  templates = prompts.COMPOUND_TEMPLATES
  assert len(templates) == len(set(templates)) == 35
  others = [t for t in templates if t not in prompts.IMAGENET_TEMPLATES]
  assert len(others) == 5 and all(t.endswith('in the scene.') for t in others)


def test_compound_states_are_7_normal_and_5_abnormal():
  normal, abnormal = prompts.COMPOUND_STATES
  assert (len(normal), len(abnormal)) == (7, 5)
  assert all(s.count('{}') == 1 for s in normal + abnormal)
  assert len(prompts.compose(normal, prompts.COMPOUND_TEMPLATES, 'x')) == 245
  assert len(prompts.compose(abnormal, prompts.COMPOUND_TEMPLATES, 'x')) == 175


def test_compose_puts_the_state_into_the_template_and_speaks_the_name():
  states, templates = ('{} with flaw', 'broken {}'), ('a photo of a {}.', 'art of the {}.')
  assert prompts.compose(states, templates, 'metal_nut') == [
    'a photo of a metal nut with flaw.', 'art of the metal nut with flaw.',
    'a photo of a broken metal nut.', 'art of the broken metal nut.']
  assert prompts.compose(('{}',), ('{}!',), '{odd}') == ['{odd}!']  # braces of a name are not places


def test_pairs_are_normal_first():
  assert [p.format('bottle') for p in prompts.CLIP_PAIR] == [
    'A photo of a normal bottle', 'A photo of an anomalous bottle']
  assert prompts.CLIP_AC_STATES == (('normal {}',), ('anomalous {}',))
  assert prompts.STATE_WORDS == ('damaged', 'anomalous', 'flawed', 'defective', 'blemished')


def test_lists_have_not_drifted():
  """Digests of the lists as transcribed; a change of one letter changes features, and nothing else would say so."""
  assert digest(prompts.IMAGENET_TEMPLATES) == 'aab8052c5981145c'
  assert digest(prompts.COMPOUND_TEMPLATES) == 'f1932e9b63b58f80'
  assert digest(prompts.WINCLIP_TEMPLATES) == '6e92cf10735ab9ef'
  assert digest(prompts.ACCURATE_TEMPLATES) == 'adbaf19780a3c696'
  assert digest(sum(prompts.WINCLIP_STATES, ())) == '0e266b82bf97ba59'
