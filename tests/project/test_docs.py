"""The documentation tells the truth: what it names exists, its commands parse, its defaults and numbers are ours."""

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

import ml_collections as mlc
import numpy as np
import pages
import pytest
import stand_ins
import typed
from drawn_folders import draw
from pages import DOCS, PAGES, ROOT
from PIL import Image

from zsad_jax import configs, data, methods, metrics
from zsad_jax.data import catalog
from zsad_jax.experiment import experiment, setup

HEADINGS = ['What it does', 'From paper to code', 'Recipe', 'Score and map', 'Commands', 'Where paper and code part',
            'Published numbers', 'What could not be checked here']
METHOD_PAGES = [page for page in DOCS if page.parent.name == 'methods']
of_page = pytest.mark.parametrize('page', PAGES, ids=pages.name)


@of_page
def test_commands_are_ones_that_the_program_takes(page):
  made = pages.named_blocks(page)
  for line in pages.commands(page):
    if not any(path in line for path in made):  # those are run by the tests of their pages
      pages.check_command(line)
  for words in pages.launches(page):
    if not any(path in words[0] for path in made):
      pages.check_launch(words)


@of_page
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', pages.prose(page)):
    if target.startswith(('http://', 'https://')):
      continue
    path, _, anchor = target.partition('#')
    there = (page.parent / path).resolve() if path else page
    assert there.exists(), f'{target} of {pages.name(page)}'
    if anchor:
      titles = [section.title for section in pages.sections(there)]
      assert anchor in map(slug, titles), f'{target} of {pages.name(page)}: no such heading'


def slug(title):
  """What a heading is called in links."""
  text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', title).strip().lower()
  return re.sub(r'[^\w\- ]', '', text).replace(' ', '-')


@of_page
def test_paths_and_functions_that_are_named_exist(page):
  made = set(pages.named_blocks(page))
  for span in pages.spans(pages.prose(page)):
    path, colon, _ = span.partition(':')
    if path in made or re.search(r'\b[A-Z]{2,}\b(?!\.(md|bib|txt))|[*<{\s]', path):
      continue
    if path.split('/')[0] in pages.FOLDERS and '/' in path:
      assert (ROOT / path).exists(), f'{pages.name(page)} names {path}'
      if colon:
        pages.resolve(span)
    elif (re.fullmatch(r'[a-z_]\w*(\.[A-Za-z_]\w*)+(\(\))?', span) and Path(span).suffix[1:] not in FILES
          and not any(pages.has(cfg, span) for cfg in pages.every_config().values())):
      pages.resolve(span)


FILES = ('bib', 'bin', 'csv', 'html', 'json', 'jsonl', 'lock', 'md', 'npy', 'npz', 'png', 'pt', 'pth', 'py',
         'safetensors', 'sha256', 'tar', 'tmp', 'txt', 'xml', 'zip')


@functools.cache
def accepted(path, words):
  """Raises where an experiment would refuse the config of `path` with these words; reads no weights."""
  cfg = mlc.FrozenConfigDict(pages.parsed(path, words))
  setup.clip_without_weights(cfg, setup.check(cfg))


@of_page
def test_keys_that_are_set_exist_and_take_these_values(page):
  for section in pages.sections(page):
    for words in pages.settings(section.text):
      keys = [word.partition('=')[0] for word in words]
      stems = [section.config] if section.config else [
        name for name, cfg in pages.every_config().items() if all(pages.has(cfg, key) for key in keys)]
      assert stems, f'{pages.name(page)}: no config has {" and ".join(keys)}'
      (accepted if page in DOCS else pages.parsed)(f'configs/{stems[0]}.py', tuple(words))


@pytest.mark.parametrize('page', DOCS, ids=pages.name)
def test_defaults_are_those_of_the_configs(page):
  for section in pages.sections(page):
    path = f'configs/{section.config or "anomalyclip"}.py'
    ours = pages.parsed(path)
    for table in pages.tables(section.text):
      columns = [i for i, title in enumerate(table.header) if title.split(',')[0] == 'default']
      for words in [words for row in table.rows for i in columns for words in pages.settings(row[i])]:
        assert ours == pages.parsed(path, words), f'{pages.name(page)}: {" ".join(words)} is not the default of {path}'


def test_every_method_has_a_page_of_the_same_structure():
  of = {page.stem for page in METHOD_PAGES}
  assert {*methods.names()} - of == {'padim_clip', 'patchcore_clip', 'spade_clip'}
  for page in METHOD_PAGES:
    titles = [section.title for section in pages.sections(page)]
    assert [title for title in titles if title in HEADINGS] == HEADINGS, pages.name(page)
    assert page.name in (ROOT / 'docs' / 'README.md').read_text()


def published_tables(page):
  """[(config with a variant, {target: {metric: number}})] of tables whose first title is 'published, `configs/...`'."""
  for section in pages.sections(page):
    for table in pages.tables(section.text):
      named = re.match(r'published, `configs/(\w+)\.py:?(\w*)`', table.header[0])
      if named:
        metrics = [title.strip('`') for title in table.header[1:]]
        yield named, {row[0].strip('`'): {m: float(cell) for m, cell in zip(metrics, row[1:]) if cell != '-'}
                      for row in table.rows}


@pytest.mark.parametrize('page', METHOD_PAGES, ids=pages.name)
def test_published_numbers_are_those_of_the_config(page):
  seen = set()
  for named, rows in published_tables(page):
    published = importlib.import_module(f'zsad_jax.configs.{named[1]}').get_config(named[2] or None).published.to_dict()
    assert rows == {target: means for target, means in published.items()
                    if isinstance(means, dict) and target != 'cost'}, named[0]
    seen.add(named[1])
  stems = [page.stem] if page.stem in methods.names() else []
  assert seen == {stem for stem in stems if 'published' in pages.config(stem)}


def test_the_index_names_every_page():
  index = (ROOT / 'docs' / 'README.md').read_text()
  linked = {(ROOT / 'docs' / target).resolve() for target in re.findall(r'\]\(([^)#]+)\)', index)}
  assert {page for page in DOCS if page != ROOT / 'docs' / 'README.md'} <= linked


def test_every_table_of_a_paper_is_listed():
  page = (ROOT / 'docs' / 'tables.md').read_text()
  for path in (ROOT / 'configs' / 'tables').glob('[a-z]*.py'):
    assert f'`{pages.name(path)}`' in page


def write(folder, files):
  for path, code in files.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(code)


@pytest.fixture
def grown(monkeypatch, tmp_path):
  """Lets tmp_path hold further modules of some packages, found as if they lay there; forgets them afterwards."""
  grown = []

  def grow(*packages):
    for package in packages:
      more = tmp_path / package.__name__.replace('.', '/')
      monkeypatch.setattr(package, '__path__', [*package.__path__, str(more)])
      grown.append(package)
    importlib.invalidate_caches()

  yield grow
  for name, module in list(sys.modules.items()):
    if str(getattr(module, '__file__', '')).startswith(str(tmp_path)):
      parent, _, child = name.rpartition('.')
      if any(package.__name__ == parent for package in grown):
        delattr(sys.modules[parent], child)
      del sys.modules[name]


def module_of(path):
  """A test file as a module of no name that others could import."""
  spec = importlib.util.spec_from_file_location(f'_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run_in(folder, lines, monkeypatch):
  """Runs commands there; at least one."""
  monkeypatch.chdir(folder)
  assert lines
  for line in lines:
    typed.run(line)


def in_a_checkout(folder, page, line):
  """Runs a command in a copy of the project that has the files of the page."""
  for name in ('checkpoints', 'configs', 'tests', 'zsad_jax'):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'), symlinks=True)
  for name in ('launch.py', 'pyproject.toml'):
    shutil.copy(ROOT / name, folder)
  write(folder, pages.named_blocks(page))
  clean = {name: value for name, value in os.environ.items() if 'PYTEST' not in name}
  done = subprocess.run([sys.executable, *shlex.split(line.removeprefix('python '))], cwd=folder, env=clean,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0 and re.search(r'\d+ passed', done.stdout), done.stdout + done.stderr


def test_a_method_added_as_the_page_says_runs(tmp_path, grown, capsys, monkeypatch):
  page = ROOT / 'docs' / 'adding-a-method.md'
  write(tmp_path, pages.named_blocks(page))
  (tmp_path / 'zsad_jax' / 'configs').symlink_to('../configs')
  grown(methods, configs)
  assert 'top_patches' in methods.names()
  module_of(ROOT / 'tests' / 'methods' / 'test_contract.py').check_functions(methods.get('top_patches'))
  tests = module_of(tmp_path / 'tests' / 'methods' / 'test_top_patches.py')
  for name in (name for name in vars(tests) if name.startswith('test_')):
    getattr(tests, name)()
  c = importlib.import_module('zsad_jax.configs.top_patches').get_config('demo')
  draw(tmp_path / 'target', {'wood': (90, 60, 30)}, images=2)
  c.update_from_flattened_dict({
    'image_size': 56, 'machine.encode_batch': 4, 'machine.eval_batch': 4, 'report.pictures': 2,
    'machine.data_dir': str(tmp_path / 'data'), 'data.target': f'folder:{tmp_path / "target"}'})
  experiment.run(mlc.FrozenConfigDict(c), tmp_path / 'work', 'run')
  assert 'Top patches (training-free)' in capsys.readouterr().out
  check_results(tmp_path / 'work' / 'results' / 'top_patches' / 'nothing-to-target' / f'seed{c.seed}')
  stand_ins.drawings(monkeypatch)
  *launches, tests = pages.commands(page)
  run_in(tmp_path, launches, monkeypatch)
  in_a_checkout(tmp_path / 'checkout', page, tests)


def check_results(folder):
  """Holds docs/results.md against the folder of an evaluation: its files, and the fields of two of them."""
  said = {section.title: pages.tables(section.text) for section in pages.sections(ROOT / 'docs' / 'results.md')}
  listed = lambda table: {name for row in table.rows for name in pages.spans(row[0])}
  files = {str(path.relative_to(folder)).replace('wood', 'CATEGORY') for path in folder.rglob('*') if path.is_file()}
  assert files == listed(said['Layout'][1])
  for name in ('metrics.json', 'manifest.json'):
    fields, there = listed(said[name][0]), set(pointers(json.loads((folder / name).read_text())))
    below = lambda path, fields=fields: any(path == field or path.startswith(f'{field}/') for field in fields)
    assert {path for path in there if not below(path)} == set(), f'fields of {name} that the page does not have'
    assert {field for field in fields if not any(f'{p}/'.startswith(f'{field}/') for p in there)} == set(), name


def pointers(tree, at=''):
  """The paths of a JSON value's leaves; metrics and the category of the test have one name."""
  if not isinstance(tree, dict) or not tree:
    return [at]
  called = dict.fromkeys(metrics.METRICS, 'METRIC') | {'wood': 'CATEGORY'}
  return [path for key, value in tree.items() for path in pointers(value, f'{at}/{called.get(key, key)}')]


def test_every_field_of_a_method_is_on_the_page():
  page = (ROOT / 'docs' / 'adding-a-method.md').read_text()
  for field in methods.Method._fields[1:]:  # but for the name
    assert f'| `{field}`' in page or f', `{field}`' in page, field


def drawn(folder, path):
  """A picture at folder/path: a white block where its name says that it is not normal, a mask in black and white."""
  pixels, (top, *rest) = np.full((40, 48, 3), 60, np.uint8), Path(path).parts
  masks = {'masks', 'ground_truth'} & {top, *rest} or path.endswith('_truth.png')
  if masks or not {'good', 'ok'} & {*rest}:
    pixels[8:20, 10:30] = 255
  image = Image.fromarray(pixels if not masks else (pixels[..., 0] > 127).astype(np.uint8) * 255)
  (folder / path).parent.mkdir(parents=True, exist_ok=True)
  image.save(folder / path)


def test_images_added_as_the_page_says_are_read(tmp_path, monkeypatch):
  page = ROOT / 'docs' / 'adding-data.md'
  plain, mvtec = (body.split() for language, body in pages.blocks(page)[:2] if language == 'text')
  for path in (*plain, *mvtec):
    drawn(tmp_path, path)
  read = lambda name: data.load(name, root=tmp_path / 'data')
  photos, parts = read(f'folder:{tmp_path / "photos"}'), read(f'folder:{tmp_path / "parts"}')
  assert photos.categories == ('photos',) and list(photos.labels) == [1, 1, 0, 0]
  assert parts.categories == ('bolt', 'nut') and list(parts.labels) == [0, 1, 1, 0]
  assert all(photos[i]['mask'].any() == bool(label) for i, label in enumerate(photos.labels))
  write(tmp_path, {'listed.csv': pages.named_blocks(page)['listed.csv']})
  for row in csv.DictReader((tmp_path / 'listed.csv').open()):
    for path in filter(None, (row['image'], row['mask'])):
      drawn(tmp_path, path)
  listed = read(f'csv:{tmp_path / "listed.csv"}')
  assert listed.object_names == {'m6': 'hexagon nut', 'm8': 'wing nut'} and list(listed.labels) == [1, 0, 1, 0]
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  lines = pages.commands(page)
  own = [line for line in lines if 'photos' in line or 'listed' in line]
  assert all('example_nuts' in line for line in lines if line not in own)  # the next test runs those
  run_in(tmp_path, own, monkeypatch)


def test_a_data_set_added_as_the_page_says_is_found_verified_and_read(tmp_path, monkeypatch):
  page = ROOT / 'docs' / 'adding-data.md'
  entry, = (body for _, body in pages.blocks(page) if body.startswith("'example_nuts'"))
  for name, record in eval(f'{{{entry}}}', dict(vars(catalog))).items():
    monkeypatch.setitem(catalog.CATALOG, name, record)
  manual = tmp_path / 'data' / 'downloads' / 'manual'
  for category in ('hexagon', 'wing'):
    for place in ('train/ok/0', 'test/ok/0', 'test/bent/0', 'ground_truth/bent/0'):
      drawn(manual, f'example_nuts/{category}/{place}.png')
  assert 'example_nuts' in data.names()
  assert data.verify('example_nuts', manual).problems == []
  found = data.load('example_nuts', root=tmp_path / 'data')
  assert found.object_names == {'hexagon': 'hexagon nut', 'wing': 'wing nut'}
  assert [found[i]['mask'].any() for i in range(4)] == [bool(label) for label in found.labels] == [True, False] * 2
  (tmp_path / 'checkout').mkdir()
  stand_ins.checkout(monkeypatch, tmp_path / 'checkout')
  (manual / 'example_nuts').rename(tmp_path / 'checkout' / 'DATA' / 'downloads' / 'manual' / 'example_nuts')
  run_in(tmp_path / 'checkout', [line for line in pages.commands(page) if 'example_nuts' in line], monkeypatch)
