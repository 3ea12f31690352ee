"""Prediction on a folder of images: files that are written, interrupted runs that resume, keys that are refused."""

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import ml_collections as mlc
import numpy as np
import pytest
from PIL import Image

import zsad_jax
from zsad_jax.engine import runtime
from zsad_jax.experiment import setup
from zsad_jax.predict import detector, folder, overlays, prediction_log

ROOT = Path(__file__).parents[2]
FIXED = {'predict.threshold': '0.5', 'predict.pixel_threshold': '0.5'}  # needs no auxiliary data set


def picture(path, size=(40, 30), seed=0, mode='RGB'):
  path.parent.mkdir(parents=True, exist_ok=True)
  channels = {'RGB': 3, 'RGBA': 4}[mode]
  pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], channels)).astype(np.uint8)
  Image.fromarray(pixels, mode).save(path)
  return path


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder of images of every kind, two of which cannot be read."""
  photos = tmp_path_factory.mktemp('photos')
  for i in range(17):
    picture(photos / f'box/{i:02d}.png', (30 + i, 20 + i), seed=i)
  picture(photos / 'same.jpg')
  picture(photos / 'same.PNG', mode='RGBA')
  picture(photos / 'straße №1.png', (130, 7))
  picture(photos / f'{"long" * 50}.png')
  (photos / 'broken.jpg').write_bytes((photos / 'same.jpg').read_bytes()[:300])
  (photos / 'empty.png').write_bytes(b'')
  (photos / 'notes.txt').write_text('not an image')
  return photos


class Finished(NamedTuple):
  """A finished prediction of the photos by the shared demo: config, workdir, folder of outputs, counts."""
  cfg: mlc.FrozenConfigDict
  workdir: Path
  out: Path
  counts: dict


@pytest.fixture(scope='module')
def finished(demo_run, photos, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('predict') / 'work'
  shutil.copytree(demo_run.workdir, workdir)
  return Finished(demo_run.cfg, workdir, workdir / 'predictions', folder.run(demo_run.cfg, workdir, photos))


@pytest.fixture(scope='module')
def demo_detector(finished):
  """The detector of `finished`, loaded from its workdir."""
  return zsad_jax.load(finished.cfg, finished.workdir)


@pytest.fixture
def loaded(demo_detector, monkeypatch):
  """Lets folder.run use `demo_detector` instead of loading it again."""
  monkeypatch.setattr(detector, 'load', lambda *_: demo_detector)


def rows_of(out):
  with open(out / 'predictions.csv', encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


@pytest.fixture
def reads(monkeypatch):
  """The files that detectors open, in order."""
  paths, before = [], detector.Detector._open
  monkeypatch.setattr(detector.Detector, '_open', lambda self, source: (paths.append(source), before(self, source))[1])
  return paths


@pytest.mark.slow
def test_every_image_is_a_row_and_an_unreadable_one_a_row_with_its_error(finished):
  _, _, out, counts = finished
  rows = rows_of(out)
  assert [row['path'] for row in rows] == sorted(row['path'] for row in rows) and len(rows) == 23
  assert counts == {'images': 23, 'failed': 2, 'anomalous': counts['anomalous'], 'normal': 21 - counts['anomalous']}
  bad = {row['path']: row for row in rows if row['error']}
  assert set(bad) == {'broken.jpg', 'empty.png'}
  assert 'the file is empty (0 bytes)' in bad['empty.png']['error']
  assert all(not bad['broken.jpg'][c] for c in folder.COLUMNS if c not in ('path', 'error'))
  lines = [json.loads(line) for line in (out / 'predictions.jsonl').read_text(encoding='utf-8').splitlines()]
  assert list(lines[0]) == list(folder.COLUMNS) == list(rows[0])
  for row, line in zip(rows, lines):
    assert row == {k: '' if v is None else str(v).lower() if isinstance(v, bool) else str(v) for k, v in line.items()}
  good = [line for line in lines if not line['error']]
  assert all(line['is_anomaly'] == (line['score'] >= line['threshold']) for line in good)
  source = good[0]['threshold_source']
  assert 'at most 5 %' in source and 'labelled images of synthetic_aux' in source
  order = sorted(good, key=lambda line: line['score'])
  assert [line['percentile'] for line in order] == sorted(line['percentile'] for line in order)
  assert not list(out.rglob('*.tmp'))


def test_outputs_have_the_size_of_the_image_and_state_their_scale(finished, photos):
  out = finished.out
  about = json.loads((out / 'about.json').read_text())
  level = about['pixel_threshold']['value']
  for row in (row for row in rows_of(out) if not row['error']):
    with Image.open(photos / row['path']) as image:
      size = image.size
    values = overlays.read_map(out / row['map'])
    mask, overlay = Image.open(out / row['mask']), Image.open(out / row['overlay'])
    assert mask.size == overlay.size == values.shape[::-1] == size
    span = json.loads(Image.open(out / row['map']).text['zsad_jax'])
    near = np.abs(values - level) < (span['high'] - span['low']) / 65535  # rounding to 16 bits
    np.testing.assert_array_equal((np.asarray(mask) > 0)[~near], (values >= level)[~near])
    assert json.loads(overlay.text['zsad_jax'])['threshold'] == level
  assert Image.open(out / 'colour_bar.png').format == 'PNG'
  names = {row['path']: row['overlay'] for row in rows_of(out)}
  assert names['same.jpg'] == 'overlays/same.jpg.png' and names['same.PNG'] == 'overlays/same.PNG.png'
  assert names['box/03.png'] == 'overlays/box/03.png' and names['straße №1.png'] == 'overlays/straße №1.png'


def test_a_finished_prediction_is_not_repeated(finished, loaded, photos, reads):
  before = (finished.out / 'predictions.csv').read_bytes()
  assert folder.run(finished.cfg, finished.workdir, photos) == finished.counts
  assert {path.name for path in reads} == {'broken.jpg', 'empty.png'}  # a file that failed may have been repaired
  assert (finished.out / 'predictions.csv').read_bytes() == before


def test_a_killed_prediction_resumes_and_ends_the_same(finished, loaded, photos, reads, tmp_path):
  out, copy = finished.out, tmp_path / 'copy'
  shutil.copytree(out, copy)
  log = copy / 'prediction_log.jsonl'
  lines = log.read_bytes().splitlines(keepends=True)
  log.write_bytes(b''.join(lines[:12]) + lines[12][:-9])  # a kill within the twelfth row
  complete = {json.loads(line)['path'] for line in lines[1:12]}
  (copy / 'overlays' / 'box' / '00.png').unlink()  # and an overlay that was lost
  folder.run(finished.cfg, finished.workdir, photos, copy)
  repeated = {path.relative_to(photos).as_posix() for path in reads}
  assert complete & repeated == {'box/00.png'} and len(repeated) == 23 - 11 + 1
  assert (copy / 'predictions.csv').read_bytes() == (out / 'predictions.csv').read_bytes()
  assert (copy / 'overlays' / 'box' / '00.png').read_bytes() == (out / 'overlays' / 'box' / '00.png').read_bytes()


def test_sigterm_stops_after_a_batch_whose_rows_stay(finished, loaded, photos, reads, tmp_path, monkeypatch):
  append = prediction_log.PredictionLog.append

  def append_and_stop(self, rows):
    append(self, rows)
    os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(prediction_log.PredictionLog, 'append', append_and_stop)
    with pytest.raises(runtime.Preempted, match='8 of 23 images'):
      folder.run(finished.cfg, finished.workdir, photos, tmp_path)
  assert not (tmp_path / 'predictions.csv').exists()
  reads.clear()
  assert folder.run(finished.cfg, finished.workdir, photos, tmp_path) == finished.counts
  assert len(reads) == 15
  assert rows_of(tmp_path) == rows_of(finished.out)


@pytest.mark.slow
def test_changed_files_and_detectors_are_predicted_again(small, tmp_path, reads, caplog):
  photos, out, workdir = tmp_path / 'photos', tmp_path / 'out', tmp_path / 'work'
  for i in range(3):
    picture(photos / f'{i}.png', seed=i)
  cfg = small(**FIXED)
  folder.run(cfg, workdir, photos, out)
  first = rows_of(out)
  picture(photos / '1.png', (50, 50), seed=9)
  reads.clear()
  folder.run(cfg, workdir, photos, out)
  assert [path.name for path in reads] == ['1.png']
  assert [a['score'] == b['score'] for a, b in zip(first, rows_of(out))] == [True, False, True]
  reads.clear()
  folder.run(setup.with_overrides(cfg, {'predict.threshold': '0.1'}), workdir, photos, out)
  assert not reads and {row['threshold'] for row in rows_of(out)} == {'0.1'}
  folder.run(setup.with_overrides(cfg, {'predict.object_name': 'screw'}), workdir, photos, out)
  assert len(reads) == 3 and 'belongs to another detector' in caplog.text


def test_python_and_the_command_agree(finished, demo_detector, photos):
  out = finished.out
  files = [photos / name for name in ('box/00.png', 'empty.png', 'same.PNG', 'box/16.png')]
  image = Image.open(files[0])
  predictions = demo_detector.predict([*files, image, np.asarray(image)])
  rows = {row['path']: row for row in rows_of(out)}
  assert [one.path for one in predictions] == [*map(str, files), None, None]
  for name, i in (('box/00.png', 0), ('same.PNG', 2), ('box/00.png', 4), ('box/00.png', 5)):
    one, row = predictions[i], rows[name]
    assert one.score == pytest.approx(float(row['score']), abs=1e-6)
    assert one.threshold == float(row['threshold']) and one.is_anomaly == (row['is_anomaly'] == 'true')
    np.testing.assert_array_equal(one.mask, np.asarray(Image.open(out / row['mask'])) > 0)
    np.testing.assert_allclose(one.map, overlays.read_map(out / row['map']), atol=1e-4)
  assert 'empty' in predictions[1].error and predictions[1].score is None
  with pytest.raises(ValueError, match=r'uint8 \[h, w, 3\] or \[h, w\].*float32 \[4, 4\]'):
    demo_detector.predict([np.zeros((4, 4), np.float32)])
  endless = demo_detector.stream(itertools.repeat(np.asarray(image)))  # nothing waits for its end
  assert [one.score for one in itertools.islice(endless, 20)] == pytest.approx([predictions[0].score] * 20, abs=1e-6)
  endless.close()


@pytest.mark.slow
def test_a_threshold_fitted_to_the_batch_draws_after_the_last_image(small, photos, tmp_path, monkeypatch, capsys):
  cfg, out = small(**{'predict.threshold': 'batch'}), tmp_path / 'out'
  fitted = zsad_jax.load(cfg)
  monkeypatch.setattr(detector, 'load', lambda *_: fitted)
  assert fitted.needs_batch == (True, True)
  folder.run(cfg, tmp_path / 'work', photos, out)
  assert '2 could not be predicted' in capsys.readouterr().out
  rows = [row for row in rows_of(out) if not row['error']]
  assert 'robust fit to the 21 predicted images' in rows[0]['threshold_source']
  assert all((out / row[kind]).is_file() for row in rows for kind in ('map', 'mask', 'overlay'))
  predictions = fitted.predict([photos / row['path'] for row in rows])
  assert [one.is_anomaly for one in predictions] == [row['is_anomaly'] == 'true' for row in rows]
  assert predictions[0].threshold == pytest.approx(float(rows[0]['threshold']), abs=1e-6)
  with pytest.raises(ValueError, match=r'6 predicted images.*at least 20'):
    fitted.predict([photos / row['path'] for row in rows[:6]])


def test_batch_thresholds_need_enough_images_and_saved_maps(small):
  with pytest.raises(ValueError, match=r'at least 20.*there are 17.*predict.normals=FOLDER'):
    folder.check_batch_thresholds(small().predict, True, True, 17)
  with pytest.raises(ValueError, match=r'predict\.maps=none'):
    folder.check_batch_thresholds(small(**{'predict.maps': 'none'}).predict, False, True, 20)


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('threshold', 'f1', "predict.threshold='f1' .*auto, f1_max"),
  ('threshold', 'normals', '--config.predict.normals=FOLDER'),
  ('fpr', 0.5, r'predict.fpr=0.5 .*\(0, 0.5\)'),
  ('quantile', 1.0, r'predict.quantile=1.0 .*\(0, 1\)'),
  ('maps', 'tiff', "predict.maps='?tiff'? .*png16, npy"),
  ('batch', 0, 'predict.batch=0'),
  ('object_name', ' ', 'predict.object_name is empty'),
])
def test_keys_out_of_range_are_refused_before_anything_is_loaded(small, photos, tmp_path, key, value, message):
  with pytest.raises(ValueError, match=message):
    folder.run(small(**{f'predict.{key}': value}), tmp_path / 'work', photos, tmp_path / 'out')


@pytest.mark.multiprocess
def test_the_command_names_failed_files_and_succeeds(tmp_path):
  photos, out = tmp_path / 'photos', tmp_path / 'out'
  picture(photos / 'a.png')
  picture(photos / 'b.png')
  (photos / 'c.png').write_text('not an image')
  command = subprocess.run(
    [sys.executable, str(ROOT / 'launch.py'), '--mode=predict', '--config=configs/clip.py:demo', f'--path={photos}',
     f'--workdir={tmp_path / "work"}', f'--out={out}', '--config.image_size=56', '--config.predict.maps=npy16',
     *(f'--config.{key}={value}' for key, value in FIXED.items())],
    cwd=ROOT, capture_output=True, text=True, check=False)
  assert command.returncode == 0, command.stderr
  for words in ('3 images:', '1 could not be predicted', 'c.png: not an image'):
    assert words in command.stdout
  assert np.load(out / 'maps' / 'a.npy').dtype == np.float16
  assert [row['error'] != '' for row in rows_of(out)] == [False, False, True]
