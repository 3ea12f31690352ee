"""What pages of documentation name, read out of their Markdown: commands, keys, functions, paths, links and tables."""

import functools
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from absl import flags
from ml_collections import config_flags

from zsad_jax import cli as launch
from zsad_jax import methods
from zsad_jax.configs import common

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / 'docs').rglob('*.md'))
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'checkpoints').rglob('README.md')), *DOCS]
WITH_COMMANDS = [ROOT / 'launch.py', *sorted([*(ROOT / 'configs').rglob('*.py'), *(ROOT / 'benchmarks').glob('*.py')])]
FOLDERS = ('.ci', 'benchmarks', 'checkpoints', 'configs', 'docs', 'tests', 'zsad_jax')
OTHER_COMMANDS = ('python3 -m venv', '. .venv/bin/activate', 'git clone', 'cd ', 'mkdir ', 'sha256sum ')
_FENCE = re.compile(r'^( *)```(\w*)\n(.*?)^\1```$', re.M | re.S)


class Section(NamedTuple):
  """A heading and the prose below it, up to the next heading; code blocks are left out.

  Attributes:
    title: of the heading, '' before the first.
    text: heading and prose.
    config: name of the config that its keys are of, '' where neither heading nor page name one.
  """
  title: str
  text: str
  config: str


class Table(NamedTuple):
  """Cells of a Markdown table, its header apart."""
  header: list[str]
  rows: list[list[str]]


def name(page):
  return str(page.relative_to(ROOT))


def blocks(page):
  """[(language, body)] of the fenced blocks, without their indentation."""
  return [(language, re.sub(rf'^{indent}', '', body, flags=re.M))
          for indent, language, body in _FENCE.findall(page.read_text())]


def prose(page):
  """The text without its fenced blocks."""
  return _FENCE.sub('', page.read_text())


def sections(page):
  """The Sections of a page. A method's page is of its config; so is what says "Config:" or names one in its titles."""
  default, found = page.stem if page.stem in methods.names() else '', []
  for text in re.split(r'^(?=#+ )', prose(page), flags=re.M):
    titles = re.findall(r'^#+ .*|^Config: .*|^\|.*(?=\n\|-)', text, re.M)
    named = re.search(r'configs/(\w+)\.py', '\n'.join(titles))
    found.append(Section(text.partition('\n')[0].lstrip('# '), text, named[1] if named else default))
  return found


def spans(text):
  """The code spans of a text."""
  return re.findall(r'(?<!`)`([^`\n]+)`(?!`)', text)


def settings(text):
  """['key=value', ...] of every code span that sets config keys, as a shell would hand its words on."""
  found = []
  for span in spans(text):
    span = span.replace('--config.', '')
    words = shlex.split(span) if re.match(r'[a-z_0-9.]+=', span) else ()
    if words and all(re.match(r'[a-z_0-9]+(\.[a-z_0-9]+)*=', word) for word in words):
      found.append(words)
  return found


def tables(text):
  """The Tables of a text; a `|` inside a cell is written \\|."""
  found = []
  for block in re.findall(r'((?:^\|.*\n?)+)', text, re.M):
    lines = [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in block.splitlines()]
    found.append(Table(lines[0], lines[2:]))
  return found


def commands(page):
  """The command lines of blocks that are bash, joined where they go on after a backslash."""
  lines = joined('\n'.join(body for language, body in blocks(page) if language == 'bash'))
  return [part.strip() for line in lines for part in line.split('&&') if part.strip() and not part.startswith('#')]


def launches(page):
  """The words of every launch.py of a page that is not in a block of bash: in prose, batch scripts, manifests."""
  rest = re.sub(r'```bash\n.*?```', '', page.read_text(), flags=re.S)
  found = re.findall(r'python launch\.py((?: --[\w.]+(?:=[^\s"\'`]+)?)+)', ' '.join(rest.replace('\\\n', ' ').split()))
  return [text.split() for text in found]


def scripts(page):
  """The commands of a page's prose that run a script of benchmarks."""
  return [span for span in spans(prose(page)) if span.startswith('python benchmarks/')]


def docstring_commands(path):
  """The commands of a module's docstring."""
  docstring = importlib.import_module('.'.join(path.relative_to(ROOT).with_suffix('').parts)).__doc__ or ''
  return [line.strip() for line in joined(docstring) if re.match(r' +(nice .*)?python ', line)]


def named_blocks(page):
  """{path: code} of the Python blocks whose paragraph before ends in a path and a colon: `path`:"""
  return dict(re.findall(r'`([\w./]+)`[^`\n]*:\n\n *```(?:python|text|csv)\n(.*?)```', page.read_text(), re.S))


def joined(text):
  """The lines of a text, those that end in a backslash with what follows."""
  return re.sub(r'\\\n\s*', '', text).splitlines()


def parsed(path, words=()):
  """The config of `path`, perhaps with a variant, and of words 'key=value', by the parser that launch.py uses."""
  argv = ['launch.py', f'--config={ROOT / path}', *(f'--config.{word}' for word in words)]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, '', lock_config=True, flag_values=values)
  with mock.patch.object(sys, 'argv', argv):  # where it looks for the keys that are set
    values(argv)
  return values.config


@functools.cache
def own_flags():
  """{name: flag} of launch.py but for --config."""
  return {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(launch)
          if not flag.name.startswith('config')}


def check_launch(words):
  """Raises where launch.py would not take these words: unknown flags, modes, keys, variants or values."""
  config, changes, plain = '', [], []
  for word in words:
    key, _, value = word.partition('=')
    if key == '--config':
      config = value
    elif key.startswith('--config.'):
      changes.append(word.removeprefix('--config.'))
    elif word.startswith('--'):
      known = own_flags()
      flag = known[key[2:] if key[2:] in known else key.removeprefix('--no')]
      if value and not value.startswith('$'):
        flag.parser.parse(value)
    else:
      plain.append(word)
  if config:
    assert (ROOT / config.partition(':')[0]).is_file(), config
    parsed(config, changes)
  assert config or not changes
  return plain


def check_command(line):
  """Raises where a line of shell would not do what it says, as far as that shows without running it."""
  words = shlex.split(line)
  if words[:1] == ['nice']:
    words = words[3:]
  if words[:2] == ['python', 'launch.py']:
    check_launch(words[2:])
  elif words[:2] == ['python', '-m']:
    assert words[2] == 'pytest' or (ROOT / f'{words[2].replace(".", "/")}.py').is_file(), line
  elif words[0] == 'python':
    script = (ROOT / words[1]).read_text()
    for word in words[2:]:
      assert not word.startswith('--') or f"'{word.partition('=')[0]}'" in script, f'{words[1]} has no {word}'
  elif words[:2] == ['pip', 'install']:
    assert words[2] == '-r' and (ROOT / words[3]).is_file(), line
  else:
    assert line.startswith(OTHER_COMMANDS), f'no check for {line!r}'


def resolve(reference):
  """What 'folder/file.py:name.name' or 'module.name' of zsad_jax stands for; raises where it stands for nothing.

  Behind the colon of a config is a variant.
  """
  path, colon, dotted = reference.partition(':')
  if colon and path.startswith('configs/'):
    return _module(path).get_config(dotted)
  if colon:
    return functools.reduce(getattr, dotted.split('.'), _module(path))
  parts = reference.removesuffix('()').split('.')
  for prefix in ('zsad_jax.', ''):
    for split in range(len(parts), 0, -1):
      try:
        module = importlib.import_module(prefix + '.'.join(parts[:split]))
      except ModuleNotFoundError:
        continue
      return functools.reduce(getattr, parts[split:], module)
  raise LookupError(f'{reference} is no name of zsad_jax')


def _module(path):
  return importlib.import_module(path.removesuffix('.py').removesuffix('/__init__').replace('/', '.'))


def config(stem):
  """The config of that name, or for '' the keys that all share."""
  return importlib.import_module(f'zsad_jax.configs.{stem}').get_config() if stem else common.base()


@functools.cache
def every_config():
  """{name: config} of all methods and of the pretraining."""
  return {stem: config(stem) for stem in (*methods.names(), 'pretrain_tiny')}


def has(node, dotted):
  """Whether a config has this key."""
  for part in dotted.split('.'):
    if not hasattr(node, 'keys') or part not in node:
      return False
    node = node[part]
  return True
