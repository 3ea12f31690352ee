"""What is known of every predicted picture so far, kept so that a run that was killed goes on."""

import json
import os
from pathlib import Path

import jax
from absl import logging

from zsad_jax.engine import runtime


class Journal:
  """What is known of every picture so far, a JSON line each behind one with the detector's identity.

  A journal of another detector is begun anew; a last line that a kill cut short is dropped. Each of several processes
  appends to a file of its own; the next run puts them together, however many it has.
  """

  def __init__(self, folder: Path, identity: dict):
    self._first, self._head = folder / 'journal.jsonl', json.dumps({'detector': identity}).encode() + b'\n'
    self._path, self.rows = self._first, {}
    if me := jax.process_index():
      self._path = folder / f'journal-{me}.jsonl'
    else:
      self._put_together()
    runtime.barrier('predict: one journal')
    if me:
      runtime.write_atomic(self._path, self._head)
    self.refresh()

  def _others(self) -> list[Path]:
    return sorted(self._first.parent.glob('journal-*.jsonl'))

  def _lines(self, path: Path) -> bytes:
    """The whole lines of a file behind its first, none where it is of another detector or missing."""
    text = path.read_bytes() if path.exists() else b''
    head, _, lines = text[:text.rfind(b'\n') + 1].partition(b'\n')
    if head and head + b'\n' != self._head:
      logging.warning('%s is of another detector or of other pictures to draw; all is predicted anew', path)
      return b''
    return lines

  def _put_together(self):
    others = self._others()
    whole = self._head + b''.join(self._lines(path) for path in (self._first, *others))
    if not self._first.exists() or self._first.read_bytes() != whole:
      runtime.write_atomic(self._first, whole)
    for path in others:
      path.unlink()

  def refresh(self):
    """Reads the rows that all processes have added."""
    for path in (self._first, *self._others()):
      for line in self._lines(path).splitlines():
        row = json.loads(line)
        self.rows[row['path']] = row

  def append(self, rows: list[dict]):
    """Adds rows; they are on disk when this returns."""
    self.rows.update({row['path']: row for row in rows})
    with open(self._path, 'a', encoding='utf-8') as file:
      file.write(''.join(json.dumps(row) + '\n' for row in rows))
      file.flush()
      os.fsync(file.fileno())
