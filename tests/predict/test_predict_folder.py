"""Prediction on pictures without labels: what is written, what is not done twice, what is refused."""

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw
from PIL import Image

import zsad_jax
from zsad_jax import methods
from zsad_jax.configs import anomalyclip, clip, patchcore_clip, rwda, sdp, winclip
from zsad_jax.engine import runtime
from zsad_jax.experiment import setup
from zsad_jax.predict import calibration, detector, folder, overlays, prediction_log, scoring, thresholds

ROOT = Path(__file__).parents[2]


def config(tmp, module=clip, **changes):
  """A demo config, small, whose auxiliary set is drawn in `tmp`."""
  c = module.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 56, 'train.epochs': 1, 'train.batch': 4, 'machine.encode_batch': 8, 'machine.eval_batch': 8, 'predict.batch': 8,
    'machine.data_dir': str(tmp / 'data'), 'data.aux': f'folder:{tmp / "aux"}'} | changes)
  return mlc.FrozenConfigDict(c)


def picture(path, size=(40, 30), seed=0, mode='RGB'):
  path.parent.mkdir(parents=True, exist_ok=True)
  channels = {'RGB': 3, 'RGBA': 4}[mode]
  pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], channels)).astype(np.uint8)
  Image.fromarray(pixels, mode).save(path)
  return path


@pytest.fixture(scope='module')
def tmp(tmp_path_factory):
  """A folder with a drawn auxiliary set, and photos of every kind."""
  tmp = tmp_path_factory.mktemp('predict')
  draw(tmp / 'aux', {'tile': (100, 40, 40), 'bolt': (40, 100, 40)}, images=6)
  photos = tmp / 'photos'
  for i in range(17):
    picture(photos / f'box/{i:02d}.png', (30 + i, 20 + i), seed=i)
  picture(photos / 'same.jpg')
  picture(photos / 'same.PNG', mode='RGBA')
  picture(photos / 'straße №1.png', (130, 7))
  picture(photos / f'{"long" * 50}.png')
  (photos / 'broken.jpg').write_bytes((photos / 'same.jpg').read_bytes()[:300])
  (photos / 'empty.png').write_bytes(b'')
  (photos / 'notes.txt').write_text('no picture')
  return tmp


@pytest.fixture(scope='module')
def run(tmp):
  """One finished prediction of a method that had to be trained first: (config, workdir, its folder, its counts)."""
  cfg, workdir = config(tmp, anomalyclip), tmp / 'work'
  workdir.mkdir()
  return cfg, workdir, workdir / 'predictions', folder.run(cfg, workdir, tmp / 'photos')


@pytest.fixture(scope='module')
def made(run):
  """The detector of `run`, loaded from what it has left."""
  return zsad_jax.load(run[0], run[1])


def rows_of(out):
  with open(out / 'predictions.csv', encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


def opened(monkeypatch):
  """Counts the pictures that a detector opens."""
  names, before = [], detector.Detector._open
  monkeypatch.setattr(detector.Detector, '_open', lambda self, source: (names.append(source), before(self, source))[1])
  return names


def test_every_picture_is_a_row_and_a_bad_one_a_row_with_its_reason(run):
  _, _, out, counts = run
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
  assert 'at most 5 %, on 24 labelled images of aux' in good[0]['threshold_source']
  order = sorted(good, key=lambda line: line['score'])
  assert [line['percentile'] for line in order] == sorted(line['percentile'] for line in order)
  assert not list(out.rglob('*.tmp'))


def test_pictures_have_the_size_of_the_original_and_say_their_scale(run, tmp):
  _, _, out, _ = run
  about = json.loads((out / 'about.json').read_text())
  level = about['pixel_threshold']['value']
  for row in (row for row in rows_of(out) if not row['error']):
    with Image.open(tmp / 'photos' / row['path']) as image:
      size = image.size
    found = overlays.read_map(out / row['map'])
    mask, overlay = Image.open(out / row['mask']), Image.open(out / row['overlay'])
    assert mask.size == overlay.size == found.shape[::-1] == size
    span = json.loads(Image.open(out / row['map']).text['zsad_jax'])
    near = np.abs(found - level) < (span['high'] - span['low']) / 65535  # rounding to 16 bits
    np.testing.assert_array_equal((np.asarray(mask) > 0)[~near], (found >= level)[~near])
    assert json.loads(overlay.text['zsad_jax'])['threshold'] == level
  assert Image.open(out / 'colour_bar.png').format == 'PNG'
  names = {row['path']: row['overlay'] for row in rows_of(out)}
  assert names['same.jpg'] == 'overlays/same.jpg.png' and names['same.PNG'] == 'overlays/same.PNG.png'
  assert names['box/03.png'] == 'overlays/box/03.png' and names['straße №1.png'] == 'overlays/straße №1.png'


def test_a_finished_prediction_is_not_done_again(run, made, tmp, monkeypatch):
  cfg, workdir, out, counts = run
  monkeypatch.setattr(detector, 'load', lambda *_: made)
  before = (out / 'predictions.csv').read_bytes()
  names = opened(monkeypatch)
  assert folder.run(cfg, workdir, tmp / 'photos') == counts
  assert {path.name for path in names} == {'broken.jpg', 'empty.png'}  # a file that failed may have been mended
  assert (out / 'predictions.csv').read_bytes() == before


def test_a_killed_prediction_goes_on_and_ends_the_same(run, made, tmp, monkeypatch):
  cfg, workdir, out, _ = run
  monkeypatch.setattr(detector, 'load', lambda *_: made)
  copy = tmp / 'copy'
  shutil.copytree(out, copy)
  lines = (copy / 'journal.jsonl').read_bytes().splitlines(keepends=True)
  (copy / 'journal.jsonl').write_bytes(b''.join(lines[:12]) + lines[12][:-9])  # a kill within the twelfth row
  known = {json.loads(line)['path'] for line in lines[1:12]}
  (copy / 'overlays' / 'box' / '00.png').unlink()  # and a picture that was lost
  names = opened(monkeypatch)
  folder.run(cfg, workdir, tmp / 'photos', copy)
  done = {path.relative_to(tmp / 'photos').as_posix() for path in names}
  assert known - done == known - {'box/00.png'} and len(done) == 23 - 11 + 1
  assert (copy / 'predictions.csv').read_bytes() == (out / 'predictions.csv').read_bytes()
  assert (copy / 'overlays' / 'box' / '00.png').read_bytes() == (out / 'overlays' / 'box' / '00.png').read_bytes()


def test_a_request_to_stop_ends_after_a_batch_and_keeps_it(run, made, tmp, monkeypatch):
  cfg, workdir, out, counts = run
  monkeypatch.setattr(detector, 'load', lambda *_: made)
  stopped, appended = tmp / 'stopped', prediction_log.Journal.append

  def append(self, rows):
    appended(self, rows)
    os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(prediction_log.Journal, 'append', append)
    with pytest.raises(runtime.Preempted, match='asked to stop after 8 of 23 images'):
      folder.run(cfg, workdir, tmp / 'photos', stopped)
  assert not (stopped / 'predictions.csv').exists()
  names = opened(monkeypatch)
  assert folder.run(cfg, workdir, tmp / 'photos', stopped) == counts
  assert len(names) == 15
  assert rows_of(stopped) == rows_of(out)


def test_a_changed_file_and_a_changed_detector_are_predicted_anew(tmp, monkeypatch, caplog):
  photos, out = tmp / 'few', tmp / 'changing'
  for i in range(3):
    picture(photos / f'{i}.png', seed=i)
  cfg = config(tmp, **{'predict.threshold': '0.5', 'predict.pixel_threshold': '0.5'})
  folder.run(cfg, tmp / 'work', photos, out)
  first = rows_of(out)
  picture(photos / '1.png', (50, 50), seed=9)
  names = opened(monkeypatch)
  folder.run(cfg, tmp / 'work', photos, out)
  assert [path.name for path in names] == ['1.png']
  assert [a['score'] == b['score'] for a, b in zip(first, rows_of(out))] == [True, False, True]
  names.clear()
  folder.run(setup.with_changes(cfg, {'predict.threshold': '0.1'}), tmp / 'work', photos, out)
  assert not names and {row['threshold'] for row in rows_of(out)} == {'0.1'}
  folder.run(setup.with_changes(cfg, {'predict.object_name': 'screw'}), tmp / 'work', photos, out)
  assert len(names) == 3 and 'is of another detector' in caplog.text


def test_python_says_what_the_command_says(run, made, tmp):
  _, _, out, _ = run
  files = [tmp / 'photos' / name for name in ('box/00.png', 'empty.png', 'same.PNG', 'box/16.png')]
  image = Image.open(files[0])
  found = made.predict([*files, image, np.asarray(image)])
  rows = {row['path']: row for row in rows_of(out)}
  assert [one.path for one in found] == [*map(str, files), None, None]
  for name, i in (('box/00.png', 0), ('same.PNG', 2), ('box/00.png', 4), ('box/00.png', 5)):
    one = found[i]
    assert one.score == pytest.approx(float(rows[name]['score']), abs=1e-6)
    assert one.threshold == float(rows[name]['threshold']) and one.is_anomaly == (rows[name]['is_anomaly'] == 'true')
    np.testing.assert_array_equal(one.mask, np.asarray(Image.open(out / rows[name]['mask'])) > 0)
    np.testing.assert_allclose(one.map, overlays.read_map(out / rows[name]['map']), atol=1e-4)
  assert 'empty' in found[1].error and found[1].score is None
  with pytest.raises(ValueError, match=r'an image array is uint8 \[h, w, 3\] or \[h, w\], not float32 \[4, 4\]'):
    made.predict([np.zeros((4, 4), np.float32)])
  endless = made.stream(itertools.repeat(np.asarray(image)))  # nothing waits for its end, so nothing grows with it
  assert [one.score for one in itertools.islice(endless, 20)] == pytest.approx([found[0].score] * 20, abs=1e-6)
  endless.close()


def test_scores_are_those_of_the_evaluation_and_the_threshold_is_theirs(tmp):
  made = zsad_jax.load(config(tmp))
  aux = setup.open_data(made.cfg, 'aux')
  known = calibration.auxiliary(made.cfg, methods.get('clip'), made.clip, {}, aux, None)
  kinds = [key.split('/') for key in aux.ids]
  seen = list(made.stream(tmp / 'aux' / category / 'test' / kind / f'{stem}.png' for category, _, kind, stem in kinds))
  np.testing.assert_allclose([one.score for one in seen], known.scores, atol=1e-5)
  np.testing.assert_allclose([one.map.max() for one in seen], known.peaks, atol=1e-5)
  assert known.labels.sum() == 12 and known.truth.any() and not known.truth.all()
  assert made.levels.image == thresholds.false_positive_rate(known.labels, known.scores, 0.05, known.of)
  best = calibration.levels(made.cfg.predict, 'f1_max', 'f1_max', known, None)
  assert best.image == thresholds.f1_max(known.labels, known.scores, known.of)
  assert best.pixel == thresholds.f1_max(known.truth, known.pixels, f'pixels of {known.of}')
  assert made.levels.low <= made.levels.pixel.value <= made.levels.high


def test_scores_of_the_auxiliary_set_are_kept(tmp, monkeypatch, caplog):
  made = zsad_jax.load(config(tmp), kept := tmp / 'kept')
  found, aux = made.levels, setup.open_data(made.cfg, 'aux')
  file, = (kept / 'calibration').iterdir()
  with monkeypatch.context() as patch:
    patch.setattr(calibration, '_scored', None)  # is not needed again
    made.calibrate(aux, file.parent)
  assert made.levels == found
  file.write_bytes(file.read_bytes()[:100])
  made.calibrate(aux, file.parent)
  assert made.levels == found and 'is damaged' in caplog.text


def test_normal_images_give_the_threshold_where_they_are_named(tmp):
  normals = tmp / 'aux' / 'bolt' / 'test' / 'good'
  made = zsad_jax.load(config(tmp, **{'predict.normals': str(normals)}))
  assert made.levels.image.rule == made.levels.pixel.rule == 'normals'
  assert '6 normal images' in made.levels.image.source and 'is 1/7' in made.levels.image.source
  assert not any(one.is_anomaly or one.mask.any() for one in made.predict(sorted(normals.iterdir())))


def test_a_fit_to_the_batch_draws_after_the_last_image(tmp, capsys):
  cfg, out = config(tmp, **{'predict.threshold': 'batch'}), tmp / 'batch'
  folder.run(cfg, tmp / 'work', tmp / 'photos', out)
  rows = [row for row in rows_of(out) if not row['error']]
  assert 'robust fit to the 21 predicted images' in rows[0]['threshold_source']
  assert all((out / row[kind]).is_file() for row in rows for kind in ('map', 'mask', 'overlay'))
  made = zsad_jax.load(cfg)
  assert made.waits == (True, True)
  found = made.predict([tmp / 'photos' / row['path'] for row in rows])
  assert [one.is_anomaly for one in found] == [row['is_anomaly'] == 'true' for row in rows]
  assert found[0].threshold == pytest.approx(float(rows[0]['threshold']), abs=1e-6)
  assert '2 could not be predicted' in capsys.readouterr().out
  with pytest.raises(ValueError, match='6 predicted images: 6 scores, but a fit needs at least 20'):
    made.predict([tmp / 'photos' / row['path'] for row in rows[:6]])
  with pytest.raises(ValueError, match='there are only 17, fewer than 20: name a folder of normal ones'):
    folder.check_later(cfg.predict, *made.waits, 17)
  with pytest.raises(ValueError, match=r'but predict\.maps is none'):
    folder.check_later(config(tmp, **{'predict.maps': 'none'}).predict, False, True, 20)


def test_without_an_auxiliary_set_auto_falls_back_aloud(tmp, caplog):
  gone = {'data.aux': f'folder:{tmp / "gone"}'}
  assert detector._auxiliary(config(tmp, **gone), methods.get('clip'), None) is None
  assert 'fitted to the predicted images instead' in caplog.text
  for changes in ({'predict.threshold': 'fpr'}, {'predict.pixel_threshold': 'f1_max'}):
    with pytest.raises(FileNotFoundError, match='gone'):
      detector._auxiliary(config(tmp, **gone, **changes), methods.get('clip'), None)


def test_references_come_from_the_normal_images(tmp):
  normals = tmp / 'aux' / 'bolt' / 'test' / 'good'
  cfg = config(tmp, patchcore_clip, **{'fewshot.shots': 2, 'predict.threshold': '1'})
  with pytest.raises(ValueError, match=r'fewshot.shots is 2, so patchcore_clip compares .*predict.normals=FOLDER'):
    zsad_jax.load(cfg)
  made = zsad_jax.load(cfg, changes={'predict.normals': str(normals), 'predict.pixel_threshold': '1'})
  spots = sorted((tmp / 'aux' / 'bolt' / 'test' / 'spot').iterdir())
  near, far = ([one.score for one in made.predict(files)] for files in (sorted(normals.iterdir()), spots))
  assert sorted(near)[1] < 1e-2 < min(far)  # two are references themselves
  with pytest.raises(ValueError, match=r'fewshot.shots is 9, but .* has 6 images'):
    zsad_jax.load(cfg, changes={'predict.normals': str(normals), 'fewshot.shots': 9})
  made.cfg = setup.with_changes(made.cfg, {'predict.threshold': 'normals'})
  with pytest.raises(ValueError, match='references, which are like themselves'):
    made.calibrate(None)


def test_scores_of_a_whole_category_are_replaced_and_the_output_says_so(tmp):
  cfg, note = scoring.alone(config(tmp, sdp), methods.get('sdp'))
  assert cfg.score_norm == 'none' and "score_norm is 'none' in place of 'class_minmax'" in note
  assert scoring.alone(config(tmp, winclip), methods.get('winclip')) == (config(tmp, winclip), '')
  few = {'fewshot.shots': 1, 'fewshot.s_img': 'cls_minmax'}
  assert scoring.alone(config(tmp, rwda, **few), methods.get('rwda'))[0].fewshot.s_img == 'cls'
  with pytest.raises(ValueError, match='clip scores an image by comparing it with all others'):
    scoring.alone(config(tmp), types.SimpleNamespace(finish=None))


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('threshold', 'f1', "predict.threshold is 'f1'; it must be a number or one of auto, f1_max"),
  ('threshold', 'normals', 'name their folder with --config.predict.normals=FOLDER'),
  ('fpr', 0.5, r'predict.fpr is 0.5; it must lie in \(0, 0.5\)'),
  ('quantile', 1.0, r'predict.quantile is 1.0; it must lie in \(0, 1\)'),
  ('maps', 'tiff', "predict.maps is 'tiff'; it must be one of png16, npy"),
  ('batch', 0, 'predict.batch is 0'),
  ('object_name', ' ', 'predict.object_name is empty'),
])
def test_keys_out_of_range_are_refused_before_anything_is_loaded(tmp, key, value, message):
  with pytest.raises(ValueError, match=message):
    folder.run(config(tmp, **{f'predict.{key}': value}), tmp / 'work', tmp / 'photos', tmp / 'never')


def test_configs_are_found_by_name_and_by_file():
  by_name, by_file = detector.configured('clip:demo'), detector.configured(f'{ROOT}/configs/clip.py:demo')
  assert by_name.to_dict() == by_file.to_dict() == clip.get_config('demo').to_dict()
  with pytest.raises(ValueError, match="no config 'clop'"):
    detector.configured('clop')
  with pytest.raises(FileNotFoundError, match=r'no config clop\.py'):
    detector.configured('clop.py')
  with pytest.raises(ValueError, match='anomalyclip learns: name the folder of its run'):
    zsad_jax.load('anomalyclip:demo')


def test_the_command_says_what_failed_and_ends_well(tmp):
  photos = tmp / 'two'
  picture(photos / 'a.png')
  picture(photos / 'b.png')
  (photos / 'c.png').write_text('no picture')
  done = subprocess.run(
    [sys.executable, str(ROOT / 'launch.py'), '--mode=predict', '--config=configs/clip.py:demo', f'--path={photos}',
     f'--workdir={tmp / "cli"}', f'--out={tmp / "cli-out"}', '--config.image_size=56', '--config.predict.threshold=0.5',
     '--config.predict.pixel_threshold=0.5', '--config.predict.maps=npy16'],
    cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  for said in ('3 images:', '1 could not be predicted', 'c.png: not an image'):
    assert said in done.stdout
  assert np.load(tmp / 'cli-out' / 'maps' / 'a.npy').dtype == np.float16
  assert [row['error'] != '' for row in rows_of(tmp / 'cli-out')] == [False, False, True]


def test_what_the_auxiliary_set_is_called_decides_its_scores():
  cfg, made = mlc.FrozenConfigDict(anomalyclip.get_config('demo')), types.SimpleNamespace(identity='weights')
  digests = {scoring.identity(setup.with_changes(cfg, changes), made, {}, None) for changes in (
    {}, {'object_names': 'catalogue'}, {'predict.object_name': 'bolt'}, {'predict.batch': 3})}
  assert len(digests) == 3  # the batch decides nothing
