"""The documentation is true: what it names exists, commands are accepted, defaults and numbers are the configs'."""

import csv
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import command_lines
import ml_collections as mlc
import numpy as np
import pages
import pytest
import stand_ins
from pages import DOCS, PAGES, ROOT
from PIL import Image

from zsad_jax import cli, configs, data, methods, metrics
from zsad_jax.data import catalog
from zsad_jax.experiment import setup

METHOD_PAGES = [page for page in DOCS if page.parent.name == 'methods']
OTHER_LIBRARIES = ('torch',)  # that may be missing
FILES = ('bib', 'bin', 'csv', 'html', 'json', 'jsonl', 'lock', 'md', 'npy', 'npz', 'png', 'pt', 'pth', 'py',
         'safetensors', 'sha256', 'stablehlo', 'tar', 'tmp', 'txt', 'xml', 'zip')  # endings of files' names


def check_all(check, paths):
  """Fails with a line 'path: problem' for every problem that check(path) yields, for pages or other files."""
  problems = [f'{pages.name(path)}: {problem}' for path in paths for problem in check(path)]
  assert not problems, '\n'.join(problems)


def refusal(call, *arguments):
  """Returns the message of the error that a call raises, '' if it does not."""
  try:
    call(*arguments)
  except Exception as error:
    return f'{type(error).__name__}: {error}'
  return ''


# What pages name


def test_commands_of_pages_are_accepted():
  def check(page):
    own = pages.named_blocks(page)  # files that the page tells to write
    for line in pages.commands(page) + pages.other_commands(page):
      if not any(path in line for path in own) and (problem := command_lines.problem(line)):
        yield f'{line}: {problem}'
  check_all(check, PAGES)


@pytest.mark.slow
def test_commands_of_docstrings_are_accepted():
  def check(path):
    for line in pages.docstring_commands(path):
      if problem := command_lines.problem(line):
        yield f'{line}: {problem}'
  check_all(check, pages.SOURCES)


def test_commands_of_the_help_are_accepted():
  lines = [line.strip() for line in cli.HELP.format(program='zsad').splitlines() if line.startswith('  zsad ')]
  assert len(lines) > 4
  assert [f'{line}: {problem}' for line in lines if (problem := command_lines.problem(line))] == []


def test_links_lead_somewhere():
  def check(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', pages.prose(page)):
      path, _, anchor = target.partition('#')
      there = (page.parent / path).resolve() if path else page
      if target.startswith(('http://', 'https://')):
        continue
      if not there.exists():
        yield target
      elif anchor and anchor not in [slug(section.title) for section in pages.sections(there)]:
        yield f'{target}: no such heading'
  check_all(check, PAGES)


def slug(title):
  """The name of a heading in links."""
  text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', title).strip().lower()
  return re.sub(r'[^\w\- ]', '', text).replace(' ', '-')


def test_paths_and_functions_that_pages_name_exist():
  def check(page):
    own = pages.named_blocks(page)
    for span in pages.spans(pages.prose(page)):
      path, colon, _ = span.partition(':')
      if path in own or re.search(r'\b[A-Z]{2,}\b(?!\.(md|bib|txt))|[*<{\s]', path):
        continue
      if path.split('/')[0] in pages.FOLDERS and '/' in path:
        if not (ROOT / path).exists():
          yield f'no file {path}'
        elif colon and (problem := refusal(pages.resolve, span)):
          yield f'{span}: {problem}'
      elif is_dotted_name(span) and (problem := refusal(pages.resolve, span)):
        yield f'{span}: {problem}'
  check_all(check, PAGES)


def is_dotted_name(span):
  """Whether a code span names an object of the package, and not a file or a config key."""
  return (re.fullmatch(r'[a-z_]\w*(\.[A-Za-z_]\w*)+(\(\))?', span) and Path(span).suffix[1:] not in FILES
          and span.partition('.')[0] not in OTHER_LIBRARIES
          and not any(command_lines.has(cfg, span) for cfg in pages.every_config().values()))


# Keys, defaults and published numbers


@functools.cache
def accept(reference, words):
  """Raises if an experiment would refuse the config with these words; reads no weights."""
  cfg = mlc.FrozenConfigDict(command_lines.config_of(reference, words))
  if 'method' in cfg:
    setup.clip_without_weights(cfg, setup.check(cfg))


@pytest.mark.slow
def test_keys_that_pages_set_exist_and_take_these_values():
  def check(page):
    for section in pages.sections(page):
      for words in pages.settings(section.text):
        keys = [word.partition('=')[0] for word in words]
        stems = [section.config] if section.config else [
          name for name, cfg in pages.every_config().items() if all(command_lines.has(cfg, key) for key in keys)]
        if not stems:
          if not {*keys} <= {*catalog.Entry._fields}:
            yield f'neither a config nor an entry of the catalogue has {" and ".join(keys)}'
        elif problem := refusal(accept if page in DOCS else command_lines.config_of, stems[0], tuple(words)):
          yield f'{" ".join(words)}: {problem}'
  check_all(check, PAGES)


def test_defaults_on_pages_are_those_of_the_configs():
  def check(page):
    for section in pages.sections(page):
      name = section.config or 'anomalyclip'
      for table in pages.tables(section.text):
        columns = [i for i, title in enumerate(table.header) if title.split(',')[0] == 'default']
        for words in [words for row in table.rows for i in columns for words in pages.settings(row[i])]:
          if command_lines.config_of(name, words) != command_lines.config_of(name):
            yield f'{" ".join(words)} is not the default of {name}'
  check_all(check, DOCS)


def published_tables(page):
  """Yields ((config, variant), {target: {metric: number}}) of tables with the title 'published, `configs/...`'."""
  for section in pages.sections(page):
    for table in pages.tables(section.text):
      if named := re.match(r'published, `configs/(\w+)\.py:?(\w*)`', table.header[0]):
        titles = [title.strip('`') for title in table.header[1:]]
        yield named.groups(), {row[0].strip('`'): {m: float(cell) for m, cell in zip(titles, row[1:]) if cell != '-'}
                               for row in table.rows}


def test_published_numbers_on_pages_are_those_of_the_configs():
  def check(page):
    names = set()
    for (stem, variant), rows in published_tables(page):
      published = pages.config(f'{stem}:{variant}').published.to_dict()
      if rows != {target: means for target, means in published.items() if isinstance(means, dict) and target != 'cost'}:
        yield f'published numbers of {stem}:{variant}'
      names.add(stem)
    if page.stem in methods.names() and 'published' in pages.config(page.stem) and page.stem not in names:
      yield 'no table of published numbers'
  check_all(check, METHOD_PAGES)


# Nothing is missing


def test_every_method_is_on_a_page_of_its_own_or_of_its_kind():
  text = '\n'.join(page.read_text() for page in METHOD_PAGES)
  assert [name for name in methods.names() if f'configs/{name}.py' not in text] == []


def test_the_index_links_every_page():
  index = ROOT / 'docs' / 'README.md'
  links = {(index.parent / target).resolve() for target in re.findall(r'\]\(([^)#]+)\)', index.read_text())}
  assert {page for page in DOCS if page != index} <= links


def test_every_table_of_a_paper_is_listed():
  page = (ROOT / 'docs' / 'tables.md').read_text()
  paths = [path for path in (ROOT / 'configs' / 'tables').glob('*.py') if path.stem != '__init__']
  assert [pages.name(path) for path in paths if f'`{pages.name(path)}`' not in page] == []


def test_every_field_of_a_method_is_on_the_page():
  page = (ROOT / 'docs' / 'adding-a-method.md').read_text()
  fields = [field for field in methods.Method._fields if field != 'name']
  assert [field for field in fields if f'| `{field}`' not in page and f', `{field}`' not in page] == []


def test_the_files_and_fields_of_an_evaluation_are_on_the_page(demo_run):
  parts = {section.title: pages.tables(section.text) for section in pages.sections(ROOT / 'docs' / 'results.md')}
  listed = lambda table: {name for row in table.rows for name in pages.spans(row[0])}
  folder, categories = demo_run.results, '|'.join(p.stem for p in demo_run.results.glob('pictures/*.png'))
  files = {re.sub(rf'\b({categories})\b', 'CATEGORY', path.relative_to(folder).as_posix())
           for path in folder.rglob('*') if path.is_file()}
  assert files == listed(parts['Layout'][1])
  for name in ('metrics.json', 'manifest.json'):
    fields, paths = listed(parts[name][0]), pointers(json.loads((folder / name).read_text()), categories)
    below = lambda path, fields=fields: any(f'{path}/'.startswith(f'{field}/') for field in fields)
    assert [path for path in paths if not below(path)] == [], f'fields of {name} that the page does not list'
    assert [field for field in fields if not any(f'{path}/'.startswith(f'{field}/') for path in paths)] == [], name


def pointers(tree, categories, at=''):
  """The paths of a JSON value's leaves, with one name for all metrics and categories."""
  if not isinstance(tree, dict) or not tree:
    return [at]
  every = []
  for key, value in tree.items():
    key = 'METRIC' if key in metrics.METRICS else re.sub(rf'^({categories})$', 'CATEGORY', key)
    every += pointers(value, categories, f'{at}/{key}')
  return every


# Pages to follow step by step


def write(folder, files):
  for path, code in files.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(code)


def module_of(path):
  """A test file as a module that nothing can import."""
  spec = importlib.util.spec_from_file_location(f'_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run_in(folder, lines, monkeypatch):
  """Runs commands in a folder; at least one."""
  monkeypatch.chdir(folder)
  assert lines
  for line in lines:
    command_lines.run(line)


NEW_METHOD = ROOT / 'docs' / 'adding-a-method.md'
NEW_DATA = ROOT / 'docs' / 'adding-data.md'


@pytest.fixture
def new_method(tmp_path, monkeypatch):
  """The folder of the example's files, which methods and configs are found in as if they were in the package."""
  write(tmp_path, pages.named_blocks(NEW_METHOD))
  (tmp_path / 'zsad_jax' / 'configs').symlink_to('../configs')
  for package in (methods, configs):
    more = str(tmp_path / package.__name__.replace('.', '/'))
    monkeypatch.setattr(package, '__path__', [*package.__path__, more])
  importlib.invalidate_caches()
  yield tmp_path
  for name, module in list(sys.modules.items()):
    if str(getattr(module, '__file__', '')).startswith(str(tmp_path)):
      parent, _, child = name.rpartition('.')
      if parent in ('zsad_jax.methods', 'zsad_jax.configs'):
        delattr(sys.modules[parent], child)
      del sys.modules[name]


@pytest.mark.slow
def test_a_method_added_as_the_page_says_fits_the_record_and_passes_its_tests(new_method):
  assert 'top_patches' in methods.names()
  contract = module_of(ROOT / 'tests' / 'methods' / 'test_contract.py')
  contract.check_functions(methods.from_module(importlib.import_module('zsad_jax.methods.top_patches')))
  tests = vars(module_of(new_method / 'tests' / 'methods' / 'test_top_patches.py'))
  for name in [name for name in tests if name.startswith('test_')]:
    tests[name]()


@pytest.mark.slow
def test_a_method_added_as_the_page_says_runs(new_method, capsys, monkeypatch):
  stand_ins.drawings(monkeypatch)
  *launches, tests = pages.commands(NEW_METHOD)
  run_in(new_method, launches, monkeypatch)
  assert 'Top patches (training-free)' in capsys.readouterr().out
  in_a_checkout(new_method / 'checkout', NEW_METHOD, tests)


def in_a_checkout(folder, page, line):
  """Runs tests in a copy of the project that has the files of the page."""
  for name in ('checkpoints', 'configs', 'tests', 'zsad_jax'):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'), symlinks=True)
  for name in ('launch.py', 'pyproject.toml'):
    shutil.copy(ROOT / name, folder)
  write(folder, pages.named_blocks(page))
  clean = {name: value for name, value in os.environ.items() if 'PYTEST' not in name}
  process = subprocess.run([sys.executable, *shlex.split(line.removeprefix('python '))], cwd=folder, env=clean,
                           capture_output=True, text=True, check=False)
  assert process.returncode == 0 and re.search(r'\d+ passed', process.stdout), process.stdout + process.stderr


def draw(folder, path):
  """A picture at folder/path: a white block unless its name says that it is normal; masks are black and white."""
  pixels, (top, *rest) = np.full((40, 48, 3), 60, np.uint8), Path(path).parts
  masks = {'masks', 'ground_truth'} & {top, *rest} or path.endswith('_truth.png')
  if masks or not {'good', 'ok'} & {*rest}:
    pixels[8:20, 10:30] = 255
  image = Image.fromarray(pixels if not masks else (pixels[..., 0] > 127).astype(np.uint8) * 255)
  (folder / path).parent.mkdir(parents=True, exist_ok=True)
  image.save(folder / path)


def draw_own_images(folder):
  """Writes the images and the table that the page describes."""
  plain, mvtec = (body.split() for language, body in pages.blocks(NEW_DATA)[:2] if language == 'text')
  write(folder, {'listed.csv': pages.named_blocks(NEW_DATA)['listed.csv']})
  with (folder / 'listed.csv').open() as file:
    listed = [row[column] for row in csv.DictReader(file) for column in ('image', 'mask') if row[column]]
  for path in (*plain, *mvtec, *listed):
    draw(folder, path)


def test_images_added_as_the_page_says_are_read(tmp_path):
  draw_own_images(tmp_path)
  read = lambda name: data.load(name, root=tmp_path / 'data')
  photos, parts = read(f'folder:{tmp_path / "photos"}'), read(f'folder:{tmp_path / "parts"}')
  assert photos.categories == ('photos',) and list(photos.labels) == [1, 1, 0, 0]
  assert parts.categories == ('bolt', 'nut') and list(parts.labels) == [0, 1, 1, 0]
  assert all(photos[i]['mask'].any() == bool(label) for i, label in enumerate(photos.labels))
  listed = read(f'csv:{tmp_path / "listed.csv"}')
  assert listed.object_names == {'m6': 'hexagon nut', 'm8': 'wing nut'} and list(listed.labels) == [1, 0, 1, 0]


@pytest.mark.slow
def test_commands_on_own_images_run(tmp_path, monkeypatch):
  draw_own_images(tmp_path)
  run_in(tmp_path, [line for line in pages.commands(NEW_DATA) if 'example_nuts' not in line], monkeypatch)


@pytest.fixture
def new_data(tmp_path, monkeypatch):
  """The folder of raw data sets, with the one that the page adds to the catalogue."""
  entry, = (body for _, body in pages.blocks(NEW_DATA) if body.startswith("'example_nuts'"))
  for name, record in eval(f'{{{entry}}}', dict(vars(catalog))).items():
    monkeypatch.setitem(catalog.CATALOG, name, record)
  manual = tmp_path / 'data' / 'downloads' / 'manual'
  for category in ('hexagon', 'wing'):
    for place in ('train/ok/0', 'test/ok/0', 'test/bent/0', 'ground_truth/bent/0'):
      draw(manual, f'example_nuts/{category}/{place}.png')
  return manual


def test_a_data_set_added_as_the_page_says_is_found_verified_and_read(tmp_path, new_data):
  assert 'example_nuts' in data.names()
  assert data.verify('example_nuts', new_data).problems == []
  nuts = data.load('example_nuts', root=tmp_path / 'data')
  assert nuts.object_names == {'hexagon': 'hexagon nut', 'wing': 'wing nut'}
  assert [nuts[i]['mask'].any() for i in range(4)] == [bool(label) for label in nuts.labels] == [True, False] * 2


@pytest.mark.slow
def test_commands_on_an_added_data_set_run(tmp_path, new_data, monkeypatch):
  (tmp_path / 'checkout').mkdir()
  stand_ins.checkout(monkeypatch, tmp_path / 'checkout')
  (new_data / 'example_nuts').rename(tmp_path / 'checkout' / 'DATA' / 'downloads' / 'manual' / 'example_nuts')
  lines = [line for line in pages.commands(NEW_DATA) if 'example_nuts' in line]
  run_in(tmp_path / 'checkout', lines, monkeypatch)
