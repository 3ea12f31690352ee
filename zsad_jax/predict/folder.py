"""Prediction on a folder of pictures: no labels, no masks; a table, and for each picture a map, a mask, an overlay.

Every batch leaves its files, then a line a picture in journal.jsonl; the tables are made of it in the end. A run that
was killed goes on from there, and a picture whose file or detector has changed is predicted anew.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from zsad_jax.data import images, walk
from zsad_jax.engine import logs, runtime
from zsad_jax.predict import calibration, detector, overlays, thresholds
from zsad_jax.predict.prediction_log import Journal
from zsad_jax.report import gallery, headings, heatmap, html_page

COLUMNS = ('path', 'score', 'threshold', 'threshold_source', 'is_anomaly', 'percentile', 'map', 'mask', 'overlay',
           'error')
MAPS = ('png16', 'npy', 'npy16', 'none')
LONGEST = 180  # bytes of a file name that is written
PAGE = 100  # pictures on the page
SHOWN = 5  # failures that are named
MOST = 0.9  # share called anomalous from which the threshold is doubted aloud


def run(cfg, workdir, path, out=None):
  """Predicts what is below `path` and writes the tables and pictures to `out`; returns its counts, {word: number}.

  Of n processes, process i takes every nth picture from the ith on; the first writes the tables.

  Args:
    cfg: the config; its `predict` says what is written and how thresholds are found.
    workdir: folder of the run that the detector is of, see detector.load.
    path: a folder, or one file.
    out: by default <workdir>/predictions.

  Raises:
    ValueError, FileNotFoundError: see detector.load; no picture below `path`; pictures that a threshold cannot be had
      for.
    runtime.Preempted: SIGTERM came; the same call goes on from there.
  """
  keys, out = cfg.predict, Path(out or Path(workdir) / 'predictions')
  check(keys)
  found = walk.pictures(path, without=(out, workdir))
  logs.probe(out)
  with logs.lock(out), runtime.preemption():
    made = detector.load(cfg, workdir)
    check_later(keys, *made.waits, len(found.files))
    if made.note:
      logging.warning('%s', made.note)
    if found.links:
      logging.warning('%s: %d links lead elsewhere and are not followed', found.root, found.links)
    journal = Journal(out, _identity(made))
    plan = [(file, _shown(file), name) for file, name in zip(found.files, names(found.files))]
    _predict(made, found.root, plan, out, journal)
    return _finish(made, found.root, plan, out, journal)


def check(keys):
  """Raises ValueError for what the config's `predict` says wrongly of the files to write."""
  if keys.maps not in MAPS:
    raise ValueError(f'predict.maps is {keys.maps!r}; it must be one of {", ".join(MAPS)}')
  if keys.batch < 1:
    raise ValueError(f'predict.batch is {keys.batch}; it must be at least 1')
  if not keys.object_name.strip():
    raise ValueError("predict.object_name is empty; it is what prompts call the pictured thing, such as 'object'")


def check_later(keys, image: bool, pixel: bool, count: int):
  """Raises ValueError where a threshold waits for all pictures, and they are too few or no maps are kept."""
  if (image or pixel) and count < thresholds.FEWEST:
    raise ValueError(f'the threshold is to be fitted to the pictures themselves, but there are only {count}, fewer '
                     f'than {thresholds.FEWEST}: name a folder of normal ones with --config.predict.normals=FOLDER, an '
                     'auxiliary set with --config.data.aux, or a number with --config.predict.threshold')
  if pixel and keys.maps == 'none' and (keys.masks or keys.overlays):
    raise ValueError('the threshold of maps is fitted to the whole batch, so that masks and overlays are drawn from '
                     'kept maps, but predict.maps is none: take png16, another threshold, or '
                     '--config.predict.masks=False --config.predict.overlays=False')


def names(files: list[Path]) -> list[str]:
  """Returns a name for each file's outputs: its path without the ending, which stays where two differ by it alone."""
  stem = lambda file: _shown(file.with_suffix('')).casefold()
  times = {}
  for file in files:
    times[stem(file)] = times.get(stem(file), 0) + 1
  return [_short(_shown(file if times[stem(file)] > 1 else file.with_suffix(''))) for file in files]


def _shown(file: Path) -> str:
  """The path as text that any file can hold."""
  return os.fsencode(file.as_posix()).decode('utf-8', 'backslashreplace')


def _short(name: str) -> str:
  folder, _, last = name.rpartition('/')
  if len(last.encode()) > LONGEST:
    last = last.encode()[:LONGEST - 17].decode(errors='ignore') + '-' + hashlib.sha256(last.encode()).hexdigest()[:16]
  return f'{folder}/{last}' if folder else last


def _identity(made) -> dict:
  """What decides a journal's rows and the pictures that go with them."""
  keys, levels = made.cfg.predict, made.levels
  drawn = None if levels.pixel is None else [levels.pixel.value, levels.low, levels.high]
  return {'scores': made.identity, 'levels': drawn, 'maps': keys.maps, 'masks': keys.masks, 'overlays': keys.overlays}


def _predict(made, root: Path, plan, out: Path, journal: Journal):
  """Predicts what the journal does not know; raises runtime.Preempted after the batch in which SIGTERM came."""
  own = _own(plan)
  left = [entry for entry in own if not _known(journal.rows.get(entry[1]), entry, root, out)]
  done = len(own) - len(left)
  if done:
    logging.info('%d of %d images were predicted before', done, len(own))
  of = {root / file: (shown, name) for file, shown, name in left}
  artist = overlays.Artist(made, out)

  def write(seen):
    shown, name = of[seen.source]
    return {'path': shown, **_stamp(seen.source), **artist.row(seen, name)}

  pool = ThreadPoolExecutor(detector.THREADS)
  batches = runtime.prefetch(lambda batch: list(pool.map(write, batch)),
                             made.batches(root / file for file, *_ in left), depth=1)
  bar = tqdm(total=len(own), initial=done, desc='predict', unit='image', disable=jax.process_index() > 0 or not left)
  with pool, contextlib.closing(batches), bar:
    for rows in batches:
      journal.append(rows)
      bar.update(len(rows))
      done += len(rows)
      if runtime.preempted():
        break
  if runtime.any_process(done < len(own)):
    raise runtime.Preempted(f'asked to stop after {done} of {len(own)} images')
  journal.refresh()


def _own(entries: list) -> list:
  """Those of this process, every nth of n processes."""
  return entries[jax.process_index()::jax.process_count()]


def _known(row: dict | None, entry, root: Path, out: Path) -> bool:
  """Whether the journal's row is of this very file, and its pictures are there."""
  file, _, name = entry
  if row is None or row['error'] or row['name'] != name:
    return False
  return {key: row[key] for key in ('size', 'mtime_ns')} == _stamp(root / file) and all(
    (out / row[kind]).is_file() for kind in ('map', 'mask', 'overlay') if row[kind])


def _stamp(file: Path) -> dict:
  try:
    about = file.stat()
  except OSError:
    return {'size': None, 'mtime_ns': None}
  return {'size': about.st_size, 'mtime_ns': about.st_mtime_ns}


def _finish(made, root: Path, plan, out: Path, journal: Journal) -> dict[str, int]:
  """Writes the tables, after what had to wait for all scores; prints and returns the counts."""
  rows = [journal.rows[shown] for _, shown, _ in plan]
  good = [row for row in rows if not row['error']]
  levels = made.levels
  if good and any(made.waits):
    mapped = [row for row in good if row['peak'] is not None]
    levels = calibration.of_batch(made.cfg.predict, levels, [row['score'] for row in good],
                                  [row['low'] for row in mapped], [row['peak'] for row in mapped])
  if good and made.waits[1]:
    rows = _drawn_later(made, root, plan, out, rows, levels)
  table = list(_table(rows, levels))
  logs.write_atomic(out / 'predictions.jsonl', ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in table))
  logs.write_atomic(out / 'predictions.csv', _csv(table))
  logs.write_json(out / 'about.json', _about(made, root, levels))
  if any(row['overlay'] for row in table):
    logs.write_atomic(out / 'colour_bar.png', heatmap.colour_bar(
      heatmap.threshold_scale(levels.low, levels.pixel.value, levels.high), levels.pixel.source))
  if good and jax.process_index() == 0:
    files = {shown: file for file, shown, _ in plan}
    logs.write_atomic(out / 'index.html', _page(made, root, files, table, out, levels))
  return _report(table, out, levels)


def _page(made, root, files, table, out, levels) -> str:
  """HTML of the pictures with the highest scores, to look through in a browser."""
  good = sorted((row for row in table if not row['error']), key=lambda row: -row['score'])
  scale = levels.pixel and heatmap.threshold_scale(levels.low, levels.pixel.value, levels.high)
  rule = html_page.Rule(
    levels.image.value, f'An image is anomalous if it scores {levels.image.value:.3g} or higher: {levels.image.source}.',
    scale)

  def shown():
    for row in good[:PAGE]:
      drawn = np.asarray(images.read_rgb(out / row['overlay'], made.rules)) if row['overlay'] else None
      yield gallery.Example(images.read_rgb(root / files[row['path']], made.rules), None, drawn, row['score'], None,
                          row['path'])

  count = min(len(good), PAGE)
  words = [f'{made.cfg.get("label") or headings.method(made.cfg.method)} on CLIP {made.cfg.clip}: {len(table)} pictures, of which this '
           f'page shows the {count} with the highest scores; predictions.csv has all.']
  return html_page.render_predictions(f'Predictions on {root.name}', words, shown(), count, rule)


def _drawn_later(made, root, plan, out, rows, levels) -> list[dict]:
  """The rows, with masks and overlays drawn from the kept maps."""
  artist, done, mapped = overlays.Artist(made, out, levels), 0, [pair for pair in zip(plan, rows) if pair[1]['map']]
  own = _own(mapped)
  for (file, _, name), row in tqdm(own, desc='draw', unit='image', disable=jax.process_index() > 0):
    artist.draw(name, images.read_rgb(root / file, made.rules), overlays.read_map(out / row['map']))
    done += 1
    if runtime.preempted():
      break
  if runtime.any_process(done < len(own)):
    raise runtime.Preempted(f'asked to stop after drawing {done} of {len(own)} images')
  return [row | artist.drawn(row['name']) if row['map'] else row for row in rows]


def _table(rows, levels) -> Iterator[dict]:
  good = [row['score'] for row in rows if not row['error']]
  places = iter(thresholds.percentile(good, good) if good else ())
  for row in rows:
    line = dict.fromkeys(COLUMNS) | {'path': row['path'], 'error': row['error'] or None}
    if not row['error']:
      line |= {'score': row['score'], 'threshold': levels.image.value, 'threshold_source': levels.image.source,
               'is_anomaly': row['score'] >= levels.image.value,
               'percentile': round(float(next(places)), 3),
               **{kind: row[kind] for kind in ('map', 'mask', 'overlay')}}
    yield line


def _csv(table: list[dict]) -> str:
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(COLUMNS)
  said = {None: '', True: 'true', False: 'false'}
  for row in table:
    writer.writerow([said.get(value, value) if value is None or isinstance(value, bool) else value
                     for value in row.values()])
  return out.getvalue()


def _about(made, root: Path, levels) -> dict:
  """What the tables were made of, as a JSON-able dict."""
  said = lambda threshold: threshold and threshold._asdict()
  return {'pictures': str(root), 'method': made.cfg.method, 'note': made.note or None, 'threshold': said(levels.image),
          'pixel_threshold': said(levels.pixel), 'colour_scale': {'low': levels.low, 'high': levels.high},
          'weights_sha256': made.clip.fingerprint, 'detector': made.identity,
          'config': json.loads(made.cfg.to_json_best_effort())}


def _report(table, out: Path, levels) -> dict[str, int]:
  failed = [row for row in table if row['error']]
  anomalous = sum(row['is_anomaly'] is True for row in table)
  counts = {'images': len(table), 'anomalous': anomalous, 'normal': len(table) - anomalous - len(failed),
            'failed': len(failed)}
  print(f'\n{counts["images"]} images: {anomalous} called anomalous, {counts["normal"]} normal, {len(failed)} could '
        'not be predicted')
  for row in failed[:SHOWN]:
    print(f'  {row["error"]}')
  if len(failed) > SHOWN:
    print(f'  ... and {len(failed) - SHOWN} more, see the column error')
  if levels.image:
    print(f'threshold {levels.image.value:.4g}: {levels.image.source}')
  if levels.pixel:
    print(f'threshold of maps {levels.pixel.value:.4g}: {levels.pixel.source}')
  if anomalous > MOST * (len(table) - len(failed)) and len(table) >= thresholds.FEWEST:
    print('Nearly all are called anomalous. If they are not, these pictures are unlike those the threshold comes from: '
          'take it from normal ones, --config.predict.threshold=normals --config.predict.normals=FOLDER, or, if most '
          'are normal, fit it to them: --config.predict.threshold=batch')
  print(f'table: {out / "predictions.csv"}')
  if len(failed) < len(table):
    print(f'look at: {out / "index.html"}')
  return counts
