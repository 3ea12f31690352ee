"""requirements.lock pins, by hash, versions that the requirements files accept, and says nothing of where they are."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / 'requirements.lock').read_text()
ENTRY = re.compile(r'^([A-Za-z0-9._-]+)==([^ ;\\]+)((?: ;[^\\\n]*)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$', re.M)
PINNED = {canonicalize_name(name): version for name, version, _, _ in ENTRY.findall(LOCK)}


def requirements(name):
  lines = [line.partition('#')[0].strip() for line in (ROOT / name).read_text().splitlines()]
  return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize('name', ['requirements.txt', 'requirements-test.txt'])
def test_the_lock_satisfies_the_requirements(name):
  for wanted in requirements(name):
    version = PINNED.get(canonicalize_name(wanted.name))
    assert version, f'{name} has {wanted}, the lock has no {wanted.name}: write it anew with the command in its head'
    assert wanted.specifier.contains(version), f'{name} has {wanted}, the lock {version}'


def test_every_line_is_a_pin_with_hashes_or_a_comment():
  rest = ENTRY.sub('', LOCK)
  assert len(PINNED) > 50
  assert [line for line in rest.splitlines() if line.strip() and not line.lstrip().startswith('#')] == []


def test_no_host_and_no_index_is_named():
  assert '://' not in LOCK
  assert not re.search(r'^\s*(--(extra-)?index-url|--find-links|-i|-f)\b', LOCK, re.M)


def test_continuous_integration_installs_from_the_lock():
  script = (ROOT / '.ci' / 'run').read_text()
  assert 'pip install --quiet --require-hashes -r requirements.lock' in script
  assert '-r requirements.txt' not in script
