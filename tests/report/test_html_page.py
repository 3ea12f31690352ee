"""The HTML page: explanations are true of their data sets, images are embedded, and names are escaped."""

import html.parser
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from zsad_jax.metrics import Value
from zsad_jax.report import gallery, heatmap, html_page

ROWS = {'nut <M5>': {'image_auroc': Value(.875, ''), 'aupro': Value(None, 'no mask & no hope')},
        'wood': {'image_auroc': Value(.5, ''), 'aupro': Value(.25, '')}}
SUMMARY = {'image_auroc': dict(value=.6875, count=2, of=2, reason=''),
           'aupro': dict(value=.25, count=1, of=2, reason='')}


class Sized(SimpleNamespace):
  def __len__(self):
    return len(self.labels)


class Parts(html.parser.HTMLParser):
  """Texts, addresses and tags of a page."""

  def __init__(self, text):
    super().__init__()
    self.texts, self.addresses, self.tags = [], [], []
    self.feed(text)

  def handle_data(self, data):
    self.texts.append(' '.join(data.split()))

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append((tag, attrs))
    self.addresses += [attrs[key] for key in ('src', 'href') if key in attrs]


def examples(count, label=1, size=64, **changes):
  noise = np.random.default_rng(0)
  mask = np.zeros((size, size), np.uint8)
  mask[8:16, 8:20] = 255 * (label or 0)
  for i in range(count):
    image = Image.fromarray(noise.integers(0, 256, (size, size, 3), np.uint8))
    yield gallery.Example(image, mask, noise.random((16, 16)), i / count, label, f'<b>{i}&', 'wood')._replace(**changes)


RULE = html_page.Rule(.5, 'A verdict is so & so.', heatmap.threshold_scale(0, .6, 1, 'the <middle>'))


def test_page_has_the_table_with_reasons():
  text = html_page.render('run <1>', ['What & why'], ROWS, SUMMARY, {'aupro': 81.4})
  parts = Parts(text)
  for expected in ('run <1>', 'What & why', 'nut <M5>', '87.5', '25.0', '68.8', '81.4', '-'):
    assert expected in parts.texts, expected
  assert 'title="no mask &amp; no hope"' in text
  assert 'http' not in text.replace('http-equiv', '')
  assert 'dialog' not in [tag for tag, _ in parts.tags]


def test_published_row_only_if_numbers_are_published():
  assert 'published' not in Parts(html_page.render('run', [], ROWS, SUMMARY, None)).texts


def test_images_are_embedded_and_names_are_escaped():
  figure = io.BytesIO()
  Image.new('RGB', (9, 9)).save(figure, 'png')
  text = html_page.render('run', [], ROWS, SUMMARY, None, examples=examples(4), count=4, rule=RULE,
                     sheets={'wood': 'pictures/wood #1.png'},
                     figures={'t-SNE': (figure.getvalue(), 'Points <of> images.')})
  parts = Parts(text)
  assert [a for a in parts.addresses if not a.startswith(('data:', '#'))] == ['pictures/wood%20%231.png']
  assert len([tag for tag, _ in parts.tags if tag == 'img']) == 3 * 4 + 1
  assert 'wood: <b>0&' in parts.texts and '<b>0' not in text
  cards = [attrs for tag, attrs in parts.tags if tag == 'li']
  assert [card['data-error'] for card in cards] == ['missed', 'missed', '', '']
  assert [card['data-verdict'] for card in cards] == ['0', '0', '1', '1']
  bar = [text for tag, text in zip(parts.texts, parts.texts[1:]) if 'the <middle>' in tag]
  assert bar and '0.6' in parts.texts


def test_a_normal_image_shows_that_its_ground_truth_has_no_defect():
  text = html_page.render('run', [], ROWS, SUMMARY, None, examples=examples(2, label=0), count=2, rule=RULE)
  parts = Parts(text)
  assert parts.texts.count('no defect in the ground truth') == 2
  assert [attrs['data-error'] for tag, attrs in parts.tags if tag == 'li'] == ['', 'false-alarm']


def test_images_without_maps_and_without_a_threshold():
  rule = html_page.Rule(None, 'No threshold.', None)
  parts = Parts(html_page.render('run', [], ROWS, SUMMARY, None, examples=examples(2, map=None), count=2, rule=rule))
  assert len([tag for tag, _ in parts.tags if tag == 'img']) == 2 * 2
  assert 'error' not in [attrs.get('value') for tag, attrs in parts.tags if tag == 'option']


def test_predictions_are_the_same_page_without_ground_truth():
  text = html_page.render_predictions('mine', ['Why.'], examples(3, label=None, mask=None, category=''), 3, RULE)
  parts = Parts(text)
  assert {'verdict anomalous', 'verdict normal', '<b>0&'} <= set(parts.texts)
  values = [attrs.get('value') for tag, attrs in parts.tags if tag == 'option']
  assert 'verdict-normal' in values and 'worst' not in values and 'false-alarm' not in values
  assert 'table' not in [tag for tag, _ in parts.tags]


@pytest.mark.slow
def test_five_hundred_images_of_noise_stay_below_ten_mebibytes():
  one, = examples(1, size=512)
  cheap = html_page.render('run', [], ROWS, SUMMARY, None, examples=[one] * 6, count=500, rule=RULE)
  rest = html_page.render('run', [], ROWS, SUMMARY, None)
  assert len(rest) + (len(cheap) - len(rest)) / 6 * 500 < 10 * 2 ** 20


def test_a_thumbnail_keeps_its_shape_and_grows_with_its_share():
  wide = np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8)
  (small, *size), (large, *wider) = (html_page._thumbnail(wide, share) for share in (6000, 60000))
  assert size[0] < wider[0] == 384 and size[0] == 2 * size[1]
  assert len(small) < 6000 * 4 / 3 + 40 < len(large)


def test_explanation_counts_images_and_names_new_defects():
  aux = Sized(name='aux', categories=('bolt', 'tile'), defect_types=['good', 'crack'], labels=np.array([0, 1]))
  defects = ['good', 'glue', 'crack']
  target = Sized(name='target', categories=('leaf',), defect_types=defects, labels=np.array([0, 1, 1]))
  setting, tested, _, tiny = html_page.explain('AnomalyCLIP', 'tiny', 112, 43008, aux, target)
  assert '43,008 trainable parameters, trained on 2 images of aux (1 normal, 1 anomalous; bolt, tile)' in setting
  assert '3 images of target (1 normal, 2 anomalous; leaf)' in tested
  assert 'None of these categories was trained on' in tested and 'new as well: glue.' in tested
  assert 'not how well AnomalyCLIP performs' in tiny
  assert len(html_page.explain('AnomalyCLIP', 'vit_l14_336', 518, 768, aux, target)) == 3


def test_explanation_states_images_shared_with_training():
  both = Sized(name='set', categories=('leaf',), defect_types=['good', 'glue'], labels=np.array([0, 1]))
  tested = html_page.explain('AnomalyCLIP', 'vit_l14_336', 518, 1, both, both, shared=2)[1]
  assert '2 of these images were trained on' in tested and 'not zero-shot' in tested


def test_categories_of_the_same_name_are_not_called_new():
  aux, target = (Sized(name=n, categories=('colon',), defect_types=['good', 'polyp'], labels=np.array([0, 1]))
                 for n in ('colon_ad', 'kvasir_seg'))
  tested = html_page.explain('AnomalyCLIP', 'vit_l14_336', 518, 1, aux, target)[1]
  assert tested.endswith('None of these images was trained on.')


def test_explanation_of_a_training_free_method():
  target = Sized(name='t', categories=('leaf',), defect_types=['good'], labels=np.array([0]))
  setting, tested, _ = html_page.explain('CLIP', 'vit_b32', 224, 0, None, target)
  assert 'Training-free' in setting and 'was trained on' not in tested and 'new as well' not in tested
