"""The detector in Python: scores equal to the evaluation's, thresholds, references, configs, short reprs."""

from pathlib import Path

import numpy as np
import pytest

import zsad_jax
from zsad_jax.configs import anomalyclip, clip, patchcore_clip, rwda, sdp, winclip
from zsad_jax.experiment import config_files, setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods.parts import prompts
from zsad_jax.predict import calibration, detector, scoring, thresholds

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module', autouse=True)
def short_prompts():
  """Four texts of an ensemble instead of hundreds."""
  whole = prompts.compose
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prompts, 'compose', lambda *args, **how: whole(*args, **how)[:4])
    yield


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp('work')


@pytest.fixture(scope='module')
def loaded(small, workdir):
  """The detector of CLIP, with its threshold from the auxiliary data set."""
  return zsad_jax.load(small(), workdir)


@pytest.fixture(scope='module')
def weightless():
  """The Run of a config, with a CLIP without weights."""
  return lambda cfg: Run.load(cfg, setup.clip_without_weights(cfg, setup.check(cfg)))


def normals_of(drawn):
  return drawn / 'aux' / 'bolt' / 'test' / 'good'


@pytest.mark.slow
def test_scores_and_thresholds_are_those_of_the_evaluation(loaded, drawn):
  aux = setup.open_data(loaded.cfg, 'aux')
  known = calibration.of_auxiliary(loaded.run, loaded.params, aux, None)
  parts = [key.split('/') for key in aux.ids]
  scored = list(loaded.stream(drawn / 'aux' / category / 'test' / kind / f'{stem}.png'
                              for category, _, kind, stem in parts))
  np.testing.assert_allclose([one.score for one in scored], known.scores, atol=1e-5)
  np.testing.assert_allclose([one.map.max() for one in scored], known.peaks, atol=1e-5)
  assert known.labels.sum() == 12 and known.truth.any() and not known.truth.all()
  levels = loaded.levels
  assert levels.image == thresholds.false_positive_rate(known.labels, known.scores, 0.05, known.of)
  assert levels.low <= levels.pixel.value <= levels.high
  best = calibration.levels(loaded.cfg.predict, 'f1_max', 'f1_max', known, None)
  assert best.image == thresholds.f1_max(known.labels, known.scores, known.of)
  assert best.pixel == thresholds.f1_max(known.truth, known.pixels, f'pixels of {known.of}')


@pytest.mark.slow
def test_scores_of_the_auxiliary_data_set_are_stored_in_the_workdir(loaded, workdir, monkeypatch, caplog):
  levels, aux = loaded.levels, setup.open_data(loaded.cfg, 'aux')
  file, = (workdir / 'calibration').iterdir()
  with monkeypatch.context() as patch:
    patch.setattr(calibration, '_scored', None)  # is not needed again
    loaded.calibrate(aux, file.parent)
  assert loaded.levels == levels
  file.write_bytes(file.read_bytes()[:100])
  loaded.calibrate(aux, file.parent)
  assert loaded.levels == levels and 'is damaged' in caplog.text


@pytest.mark.slow
def test_a_workdir_without_a_finished_training_is_trained_first(small, drawn, tmp_path, monkeypatch):
  cfg = small(anomalyclip, **{
    'train.epochs': 1, 'train.batch': 4, 'predict.threshold': '0', 'predict.pixel_threshold': '0'})
  files = sorted(normals_of(drawn).iterdir())[:2]
  trained = zsad_jax.load(cfg, tmp_path).predict(files)
  assert [path.name for path in (tmp_path / 'checkpoints').glob('*.manifest')] == ['6.manifest']
  monkeypatch.setattr(Run, 'fit', None)  # is not needed again
  restored = zsad_jax.load(cfg, tmp_path).predict(files)
  assert [one.score for one in restored] == [one.score for one in trained]
  with pytest.raises(TypeError):  # another epoch is to be trained
    zsad_jax.load(cfg, tmp_path, {'train.epochs': 2})


def test_reprs_fit_on_a_line(loaded, drawn, tmp_path):
  level = loaded.levels.image
  assert repr(loaded) == f'Detector(CLIP on CLIP tiny at 56 px, threshold {level.value:.4g} (fpr))'
  (tmp_path / 'empty.png').write_bytes(b'')
  file = min(normals_of(drawn).iterdir())
  good, bad = loaded.predict([file, tmp_path / 'empty.png'])
  verdict = 'anomalous' if good.is_anomaly else 'normal'
  assert repr(good) == (f"Prediction('{file}', score={good.score:.4g}, threshold={level.value:.4g}, {verdict}, "
                        'map 72x72)')
  assert repr(good._replace(map=None)).endswith(f'{verdict})')
  assert repr(bad).startswith(f"Prediction('{tmp_path / 'empty.png'}', error=") and 'empty' in repr(bad)
  waiting = detector.Detector(loaded.run, loaded.params)
  assert 'no threshold yet' in repr(waiting) and waiting.needs_batch == (True, True)


def test_normal_images_give_the_threshold(small, drawn):
  normals = normals_of(drawn)
  loaded = zsad_jax.load(small(**{'predict.normals': str(normals)}))
  assert loaded.levels.image.rule == loaded.levels.pixel.rule == 'normals'
  assert '6 normal images' in loaded.levels.image.source and '1/7' in loaded.levels.image.source
  assert not any(one.is_anomaly or one.mask.any() for one in loaded.predict(sorted(normals.iterdir())))


def test_without_an_auxiliary_data_set_auto_fits_to_the_images_with_a_warning(small, drawn, weightless, caplog):
  missing = {'data.aux': f'folder:{drawn / "missing"}'}
  assert detector._open_auxiliary(weightless(small(**missing))) is None
  assert 'fitted to the predicted images instead' in caplog.text
  for changes in ({'predict.threshold': 'fpr'}, {'predict.pixel_threshold': 'f1_max'}):
    with pytest.raises(FileNotFoundError, match='missing'):
      detector._open_auxiliary(weightless(small(**missing, **changes)))


@pytest.mark.slow
def test_references_come_from_the_normal_images(small, drawn):
  normals = normals_of(drawn)
  cfg = small(patchcore_clip, **{'fewshot.shots': 2, 'predict.threshold': '1', 'predict.pixel_threshold': '1'})
  with pytest.raises(ValueError, match=r'fewshot.shots=2.* normal images.*predict.normals=FOLDER'):
    zsad_jax.load(cfg)
  loaded = zsad_jax.load(cfg, changes={'predict.normals': str(normals)})
  spots = sorted((drawn / 'aux' / 'bolt' / 'test' / 'spot').iterdir())
  near, far = ([one.score for one in loaded.predict(files)] for files in (sorted(normals.iterdir()), spots))
  assert sorted(near)[1] < 1e-2 < min(far)  # two are references themselves
  with pytest.raises(ValueError, match=r'fewshot.shots=9.* 6 images'):
    zsad_jax.load(cfg, changes={'predict.normals': str(normals), 'fewshot.shots': 9})
  loaded.run = loaded.run.with_overrides({'predict.threshold': 'normals'})
  with pytest.raises(ValueError, match=r'predict.threshold=normals.*references'):
    loaded.calibrate(None)


def test_scores_that_compare_images_are_replaced_with_a_note(small, weightless):
  run, note = scoring.single_image(weightless(small(sdp)))
  assert run.cfg.score_norm == 'none' and "score_norm='none' instead of 'class_minmax'" in note
  whole = weightless(small(winclip))
  assert scoring.single_image(whole) == (whole, '')
  few = weightless(small(rwda, **{'fewshot.shots': 1, 'fewshot.s_img': 'cls_minmax'}))
  assert scoring.single_image(few)[0].cfg.fewshot.s_img == 'cls'


def test_the_identity_of_scores_follows_names_but_not_batch_sizes(small, weightless):
  run = weightless(small(anomalyclip))
  digests = {scoring.identity(run.with_overrides(changes), {}, None) for changes in (
    {}, {'object_names': 'catalogue'}, {'predict.object_name': 'bolt'}, {'predict.batch': 3})}
  assert len(digests) == 3  # the batch decides nothing


def test_load_refuses_unknown_configs_and_training_without_a_workdir():
  by_file = config_files.load(f'{ROOT}/configs/clip.py:demo')
  assert config_files.load('clip:demo').to_dict() == by_file.to_dict() == clip.get_config('demo').to_dict()
  with pytest.raises(ValueError, match="unknown config 'clop'"):
    zsad_jax.load('clop')
  with pytest.raises(FileNotFoundError, match=r'clop\.py'):
    zsad_jax.load('clop.py')
  with pytest.raises(ValueError, match='AnomalyCLIP has to be trained: pass workdir'):
    zsad_jax.load('anomalyclip:demo')
