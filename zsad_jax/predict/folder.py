"""Prediction on a folder of images without labels: a table, and for each image an anomaly map, a mask and an overlay.

Every batch writes its files, then one line per image to the prediction log; the tables are made from it at the end. An
interrupted run resumes from it, and an image whose file or detector has changed is predicted again.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from zsad_jax.data import image_files, images
from zsad_jax.engine import logs, runtime
from zsad_jax.experiment import setup
from zsad_jax.predict import calibration, detector, overlays, thresholds
from zsad_jax.predict.calibration import Levels
from zsad_jax.predict.detector import Detector, Scored
from zsad_jax.predict.prediction_log import PredictionLog
from zsad_jax.report import gallery, heatmap, html_page

COLUMNS = ('path', 'score', 'threshold', 'threshold_source', 'is_anomaly', 'percentile', 'map', 'mask', 'overlay',
           'error')
LONGEST = 180  # bytes of a file name that is written
PAGE = 100  # images on the page
SHOWN = 5  # failures that are printed
SUSPICIOUS = 0.9  # share of anomalous verdicts above which the threshold is questioned


class Planned(NamedTuple):
  """An image to predict: its file below the root, that path as printable text, and the name of its outputs."""
  file: Path
  path: str
  name: str


def run(cfg: setup.Config, workdir: Path, path: Path | str, out: Path | str | None = None) -> dict[str, int]:
  """Predicts all images below `path` and writes tables and pictures to `out`; returns counts {word: number}.

  Of n processes, process i takes every n-th image from the i-th on; the first writes the tables.

  Args:
    cfg: the config; its `predict` says what is written and how thresholds are found.
    workdir: folder of the detector's run, see detector.load.
    path: a folder, or one file.
    out: by default <workdir>/predictions.

  Raises:
    ValueError, FileNotFoundError: see detector.load; no image below `path`; too few images for the threshold's rule.
    runtime.Preempted: SIGTERM came; the same call resumes.
  """
  keys, out = cfg.predict, Path(out or Path(workdir) / 'predictions')
  if not keys.object_name.strip():
    raise ValueError("predict.object_name is empty; it is what prompts call the object, such as 'object'")
  found = image_files.find(path, without=(out, workdir))
  logs.probe(out)
  with logs.lock(out), runtime.preemption():
    made = detector.load(cfg, workdir)
    check_batch_thresholds(keys, *made.needs_batch, len(found.files))
    if made.note:
      logging.warning('%s', made.note)
    if found.links:
      logging.warning('%s: %d symbolic links that lead elsewhere are not followed', found.root, found.links)
    log = PredictionLog(out, _identity(made))
    plan = [Planned(file, _printable(file), name) for file, name in zip(found.files, names(found.files))]
    _predict(made, found.root, plan, out, log)
    return _finish(made, found.root, plan, out, log)


def check_batch_thresholds(keys: Any, image: bool, pixel: bool, count: int) -> None:
  """Raises ValueError if a threshold is to be fitted to the images, but they are too few or no maps are kept."""
  if (image or pixel) and count < thresholds.FEWEST:
    raise ValueError(f'the threshold is to be fitted to the images, which takes at least {thresholds.FEWEST}, '
                     f'but there are {count}: name a folder of normal images with --config.predict.normals=FOLDER, an '
                     'auxiliary data set with --config.data.aux, or a number with --config.predict.threshold')
  if pixel and keys.maps == 'none' and (keys.masks or keys.overlays):
    raise ValueError('predict.maps=none is not possible here: the threshold of maps is fitted to all images, so masks '
                     'and overlays are drawn from saved maps. Use png16, another threshold, or '
                     '--config.predict.masks=False --config.predict.overlays=False')


def names(files: Sequence[Path]) -> list[str]:
  """Returns a name for each file's outputs: its path without the suffix, which stays if two differ by it alone."""
  stem = lambda file: _printable(file.with_suffix('')).casefold()
  times: dict[str, int] = {}
  for file in files:
    times[stem(file)] = times.get(stem(file), 0) + 1
  return [_short(_printable(file if times[stem(file)] > 1 else file.with_suffix(''))) for file in files]


def _printable(file: Path) -> str:
  """The path as text that any file can hold."""
  return os.fsencode(file.as_posix()).decode('utf-8', 'backslashreplace')


def _short(name: str) -> str:
  folder, _, last = name.rpartition('/')
  if len(last.encode()) > LONGEST:
    last = last.encode()[:LONGEST - 17].decode(errors='ignore') + '-' + hashlib.sha256(last.encode()).hexdigest()[:16]
  return f'{folder}/{last}' if folder else last


def _identity(made: Detector) -> dict[str, Any]:
  """Everything that decides the rows of a log and the pictures that go with them."""
  keys, levels = made.cfg.predict, made.levels
  scale = None if levels.pixel is None else [levels.pixel.value, levels.low, levels.high]
  return {'scores': made.identity, 'levels': scale, 'maps': keys.maps, 'masks': keys.masks, 'overlays': keys.overlays}


def _predict(made: Detector, root: Path, plan: Sequence[Planned], out: Path, log: PredictionLog) -> None:
  """Predicts what is not in the log; raises runtime.Preempted after the batch in which SIGTERM came."""
  own = _own(plan)
  left = [entry for entry in own if not _is_done(log.rows.get(entry.path), entry, root, out)]
  done = len(own) - len(left)
  if done:
    logging.info('%d of %d images were predicted before', done, len(own))
  planned = {root / entry.file: entry for entry in left}
  writer = overlays.OverlayWriter(made, out)

  def write(scored: Scored) -> dict[str, Any]:
    entry = planned[scored.source]
    return {'path': entry.path, **_stamp(root / entry.file), **writer.write(scored, entry.name)}

  pool = ThreadPoolExecutor(detector.THREADS)
  batches = runtime.prefetch(lambda batch: list(pool.map(write, batch)), made.batches(planned), depth=1)
  bar = tqdm(total=len(own), initial=done, desc='predict', unit='image', disable=jax.process_index() > 0 or not left)
  with pool, contextlib.closing(batches), bar:
    for rows in batches:
      log.append(rows)
      bar.update(len(rows))
      done += len(rows)
      if runtime.preempted():
        break
  if runtime.any_process(done < len(own)):
    raise runtime.Preempted(f'asked to stop after {done} of {len(own)} images')
  log.refresh()


def _own(entries: Sequence) -> Sequence:
  """Those of this process, every n-th of n processes."""
  return entries[jax.process_index()::jax.process_count()]


def _is_done(row: Mapping | None, entry: Planned, root: Path, out: Path) -> bool:
  """Whether the log's row is of this very file, and its pictures are there."""
  if row is None or row['error'] or row['name'] != entry.name:
    return False
  return {key: row[key] for key in ('size', 'mtime_ns')} == _stamp(root / entry.file) and all(
    (out / row[kind]).is_file() for kind in ('map', 'mask', 'overlay') if row[kind])


def _stamp(file: Path) -> dict[str, int | None]:
  try:
    about = file.stat()
  except OSError:
    return {'size': None, 'mtime_ns': None}
  return {'size': about.st_size, 'mtime_ns': about.st_mtime_ns}


def _finish(made: Detector, root: Path, plan: Sequence[Planned], out: Path, log: PredictionLog) -> dict[str, int]:
  """Writes the tables, after what had to wait for all scores; prints and returns the counts."""
  rows = [log.rows[entry.path] for entry in plan]
  good = [row for row in rows if not row['error']]
  levels = made.levels
  if good and any(made.needs_batch):
    mapped = [row for row in good if row['peak'] is not None]
    levels = calibration.of_batch(made.cfg.predict, levels, [row['score'] for row in good],
                                  [row['low'] for row in mapped], [row['peak'] for row in mapped])
  if good and made.needs_batch[1]:
    rows = _draw_from_maps(made, root, plan, out, rows, levels)
  table = list(_table(rows, levels))
  logs.write_atomic(out / 'predictions.jsonl', ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in table))
  logs.write_atomic(out / 'predictions.csv', _csv(table))
  logs.write_json(out / 'about.json', _about(made, root, levels))
  if any(row['overlay'] for row in table):
    logs.write_atomic(out / 'colour_bar.png', heatmap.colour_bar(
      heatmap.threshold_scale(levels.low, levels.pixel.value, levels.high), levels.pixel.source))
  if good and jax.process_index() == 0:
    files = {entry.path: entry.file for entry in plan}
    logs.write_atomic(out / 'index.html', _page(made, root, files, table, out, levels))
  return _report(table, out, levels)


def _page(made: Detector, root: Path, files: Mapping[str, Path], table: Sequence[dict], out: Path, levels: Levels
          ) -> str:
  """HTML of the images with the highest scores."""
  good = sorted((row for row in table if not row['error']), key=lambda row: -row['score'])
  scale = levels.pixel and heatmap.threshold_scale(levels.low, levels.pixel.value, levels.high)
  rule = html_page.Rule(
    levels.image.value, f'An image is called anomalous if it scores {levels.image.value:.3g} or more: '
    f'{levels.image.source}.', scale)

  def examples() -> Iterator[gallery.Example]:
    for row in good[:PAGE]:
      overlay = np.asarray(images.read_rgb(out / row['overlay'], made.rules)) if row['overlay'] else None
      yield gallery.Example(images.read_rgb(root / files[row['path']], made.rules), None, overlay, row['score'], None,
                            row['path'])

  count = min(len(good), PAGE)
  text = [f'{setup.label(made.cfg)} on CLIP {made.cfg.clip}: {len(table):,} images. This page shows the {count} with '
          'the highest scores; predictions.csv has all.']
  return html_page.render_predictions(f'Predictions on {root.name}', text, examples(), count, rule)


def _draw_from_maps(made: Detector, root: Path, plan: Sequence[Planned], out: Path, rows: Sequence[dict],
                    levels: Levels) -> list[dict]:
  """The rows, with masks and overlays drawn from the saved maps."""
  writer, done = overlays.OverlayWriter(made, out, levels), 0
  own = _own([pair for pair in zip(plan, rows) if pair[1]['map']])
  for entry, row in tqdm(own, desc='draw', unit='image', disable=jax.process_index() > 0):
    writer.draw(entry.name, images.read_rgb(root / entry.file, made.rules), overlays.read_map(out / row['map']))
    done += 1
    if runtime.preempted():
      break
  if runtime.any_process(done < len(own)):
    raise runtime.Preempted(f'asked to stop after drawing {done} of {len(own)} images')
  return [row | writer.paths(row['name']) if row['map'] else row for row in rows]


def _table(rows: Sequence[dict], levels: Levels) -> Iterator[dict]:
  good = [row['score'] for row in rows if not row['error']]
  percentiles = iter(thresholds.percentile(good, good) if good else ())
  for row in rows:
    line = dict.fromkeys(COLUMNS) | {'path': row['path'], 'error': row['error'] or None}
    if not row['error']:
      line |= {'score': row['score'], 'threshold': levels.image.value, 'threshold_source': levels.image.source,
               'is_anomaly': row['score'] >= levels.image.value,
               'percentile': round(float(next(percentiles)), 3),
               **{kind: row[kind] for kind in ('map', 'mask', 'overlay')}}
    yield line


def _csv(table: Sequence[dict]) -> str:
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(COLUMNS)
  as_text = {None: '', True: 'true', False: 'false'}
  for row in table:
    writer.writerow([as_text.get(value, value) if value is None or isinstance(value, bool) else value
                     for value in row.values()])
  return out.getvalue()


def _about(made: Detector, root: Path, levels: Levels) -> dict[str, Any]:
  """Where the tables come from, as a JSON-able dict."""
  plain = lambda threshold: threshold and threshold._asdict()
  return {'images': str(root), 'method': made.cfg.method, 'note': made.note or None, 'threshold': plain(levels.image),
          'pixel_threshold': plain(levels.pixel), 'colour_scale': {'low': levels.low, 'high': levels.high},
          'weights_sha256': made.run.clip.fingerprint, 'detector': made.identity,
          'config': json.loads(made.cfg.to_json_best_effort())}


def _report(table: Sequence[dict], out: Path, levels: Levels) -> dict[str, int]:
  failed = [row for row in table if row['error']]
  anomalous = sum(row['is_anomaly'] is True for row in table)
  counts = {'images': len(table), 'anomalous': anomalous, 'normal': len(table) - anomalous - len(failed),
            'failed': len(failed)}
  print(f'\n{counts["images"]:,} images: {anomalous:,} anomalous, {counts["normal"]:,} normal, {len(failed):,} could '
        'not be predicted')
  for row in failed[:SHOWN]:
    print(f'  {row["error"]}')
  if len(failed) > SHOWN:
    print(f'  ... and {len(failed) - SHOWN} more, see the column error')
  if levels.image:
    print(f'threshold of scores: {levels.image.value:.4g}, {levels.image.source}')
  if levels.pixel:
    print(f'threshold of maps:   {levels.pixel.value:.4g}, {levels.pixel.source}')
  if anomalous > SUSPICIOUS * (len(table) - len(failed)) and len(table) >= thresholds.FEWEST:
    print('Nearly all images are called anomalous. If they are not, they differ from those that the threshold comes '
          'from: take it from normal images, --config.predict.threshold=normals --config.predict.normals=FOLDER, or, '
          'if most are normal, fit it to them, --config.predict.threshold=batch')
  print(f'table: {out / "predictions.csv"}')
  if len(failed) < len(table):
    print(f'page:  {out / "index.html"}')
  return counts
