"""Append-only prediction log, so that an interrupted prediction can resume."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from zsad_jax.engine import runtime

NAME = 'prediction_log'


class PredictionLog:
  """One JSON line per predicted image, after a first line with the identity of the detector.

  A log of another detector is discarded; a last line that a kill cut short is dropped. Each of several processes
  appends to a file of its own; the next run merges them, however many processes it has.
  """

  def __init__(self, folder: Path, identity: Mapping[str, Any]):
    self._first, self._head = folder / f'{NAME}.jsonl', json.dumps({'detector': identity}).encode() + b'\n'
    self._path = self._first
    self.rows: dict[str, dict] = {}
    if number := jax.process_index():
      self._path = folder / f'{NAME}-{number}.jsonl'
    else:
      self._merge()
    runtime.barrier('predict: one prediction log')
    if number:
      runtime.write_atomic(self._path, self._head)
    self.refresh()

  def _others(self) -> list[Path]:
    return sorted(self._first.parent.glob(f'{NAME}-*.jsonl'))

  def _lines(self, path: Path) -> bytes:
    """The complete lines of a file after its first; none if it is of another detector or missing."""
    text = path.read_bytes() if path.exists() else b''
    head, _, lines = text[:text.rfind(b'\n') + 1].partition(b'\n')
    if head and head + b'\n' != self._head:
      logging.warning('%s belongs to another detector or other output settings; predicting everything again', path)
      return b''
    return lines

  def _merge(self):
    others = self._others()
    whole = self._head + b''.join(self._lines(path) for path in (self._first, *others))
    if not self._first.exists() or self._first.read_bytes() != whole:
      runtime.write_atomic(self._first, whole)
    for path in others:
      path.unlink()

  def refresh(self) -> None:
    """Reads the rows that all processes have added."""
    for path in (self._first, *self._others()):
      for line in self._lines(path).splitlines():
        row = json.loads(line)
        self.rows[row['path']] = row

  def append(self, rows: Sequence[dict]) -> None:
    """Adds rows; they are on disk when this returns."""
    self.rows.update({row['path']: row for row in rows})
    with open(self._path, 'a', encoding='utf-8') as file:
      file.write(''.join(json.dumps(row) + '\n' for row in rows))
      file.flush()
      os.fsync(file.fileno())
