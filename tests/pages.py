"""Pages of documentation read as Markdown: their commands, keys, functions, paths, links and tables."""

import ast
import functools
import importlib
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections as mlc

from zsad_jax import methods
from zsad_jax.configs import common
from zsad_jax.experiment import config_files

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / 'docs').rglob('*.md'))
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'checkpoints').rglob('README.md')), *DOCS]
SOURCES = [ROOT / 'launch.py', *sorted(  # files whose docstrings have commands
  path for folder in ('configs', 'benchmarks', 'examples') for path in (ROOT / folder).rglob('*.py'))]
FOLDERS = ('.ci', 'benchmarks', 'checkpoints', 'configs', 'docs', 'examples', 'tests', 'zsad_jax')
_FENCE = re.compile(r'^( *)```(\w*)\n(.*?)^\1```$', re.M | re.S)


class Section(NamedTuple):
  """A heading and the prose below it, up to the next heading, without code blocks.

  Attributes:
    title: of the heading, '' before the first.
    text: heading and prose.
    config: name of the config whose keys it speaks of, '' if neither heading nor page names one.
  """
  title: str
  text: str
  config: str


class Table(NamedTuple):
  """Cells of a Markdown table."""
  header: list[str]
  rows: list[list[str]]


def name(page: Path) -> str:
  return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
  """Returns [(language, body)] of the fenced blocks, without their indentation."""
  return [(language, re.sub(rf'^{indent}', '', body, flags=re.M))
          for indent, language, body in _FENCE.findall(page.read_text())]


def prose(page: Path) -> str:
  """Returns the text without its fenced blocks."""
  return _FENCE.sub('', page.read_text())


def sections(page: Path) -> list[Section]:
  """Returns the Sections of a page.

  The page of a method speaks of its config, and so does a section whose title, table or line "Config:" names one.
  """
  default, parts = page.stem if page.stem in methods.names() else '', []
  for text in re.split(r'^(?=#+ )', prose(page), flags=re.M):
    titles = re.findall(r'^#+ .*|^Config: .*|^\|.*(?=\n\|-)', text, re.M)
    config = re.search(r'configs/(\w+)\.py', '\n'.join(titles))
    parts.append(Section(text.partition('\n')[0].lstrip('# '), text, config[1] if config else default))
  return parts


def spans(text: str) -> list[str]:
  """Returns the code spans of a text."""
  return re.findall(r'(?<!`)`([^`\n]+)`(?!`)', text)


def settings(text: str) -> list[list[str]]:
  """Returns ['key=value', ...] of every code span that sets config keys, split as by a shell."""
  every = []
  for span in spans(text):
    span = span.replace('--config.', '')
    words = shlex.split(span) if re.match(r'[a-z_0-9.]+=', span) else ()
    if words and all(re.match(r'[a-z_0-9]+(\.[a-z_0-9]+)*=', word) for word in words):
      every.append(words)
  return every


def tables(text: str) -> list[Table]:
  """Returns the Tables of a text; a `|` inside a cell is written \\|."""
  every = []
  for block in re.findall(r'((?:^\|.*\n?)+)', text, re.M):
    lines = [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in block.splitlines()]
    every.append(Table(lines[0], lines[2:]))
  return every


def commands(page: Path) -> list[str]:
  """Returns the command lines of a page's bash blocks, joined if they continue after a backslash."""
  lines = joined('\n'.join(body for language, body in blocks(page) if language == 'bash'))
  return [part.strip() for line in lines for part in line.split('&&') if part.strip() and not part.startswith('#')]


def other_commands(page: Path) -> list[str]:
  """Returns the commands outside of bash blocks, in prose, batch scripts and manifests: launches, then benchmarks."""
  rest = re.sub(r'```bash\n.*?```', '', page.read_text(), flags=re.S)
  words = ' '.join(rest.replace('\\\n', ' ').split())
  launches = re.findall(r'((?:python launch\.py|(?<=`)zsad)(?: --[\w.]+(?:=[^\s"\'`]+)?)+)', words)
  return launches + [span for span in spans(prose(page)) if span.startswith('python benchmarks/')]


def docstring_commands(path: Path) -> list[str]:
  """Returns the commands of a module's docstring, without brackets around what may be left out."""
  docstring = ast.get_docstring(ast.parse(path.read_text()), clean=False) or ''
  return [re.sub(r'[][]', '', line).strip() for line in joined(docstring) if re.match(r' +(nice .*)?python ', line)]


def named_blocks(page: Path) -> dict[str, str]:
  """Returns {path: code} of the blocks after a paragraph that ends in a path and a colon: `path`:"""
  return dict(re.findall(r'`([\w./]+)`[^`\n]*:\n\n *```(?:python|text|csv)\n(.*?)```', page.read_text(), re.S))


def joined(text: str) -> list[str]:
  """Returns the lines of a text, those that end in a backslash with the line after them."""
  return re.sub(r'\\\n\s*', '', text).splitlines()


def resolve(reference: str) -> Any:
  """Returns the object that 'folder/file.py:name.name' or 'module.name' of zsad_jax stands for.

  After the colon of a config is its variant.

  Raises:
    LookupError, ImportError, AttributeError, ValueError: it stands for nothing.
  """
  path, colon, dotted = reference.partition(':')
  if colon and path.startswith('configs/'):
    return config_files.read(reference)
  if colon:
    module = importlib.import_module(path.removesuffix('.py').removesuffix('/__init__').replace('/', '.'))
    return functools.reduce(getattr, dotted.split('.'), module)
  parts = reference.removesuffix('()').split('.')
  for prefix in ('zsad_jax.', ''):
    for split in range(len(parts), 0, -1):
      try:
        module = importlib.import_module(prefix + '.'.join(parts[:split]))
      except ModuleNotFoundError:
        continue
      return functools.reduce(getattr, parts[split:], module)
  raise LookupError(f'{reference} is not a name of zsad_jax')


def config(stem: str) -> mlc.ConfigDict:
  """Returns the config of that name, or for '' the keys that all share."""
  return config_files.read(stem) if stem else common.base()


@functools.cache
def every_config() -> dict[str, mlc.ConfigDict]:
  """Returns {name: config} of all methods and of the pretraining."""
  return {stem: config(stem) for stem in (*methods.names(), 'pretrain_tiny')}
