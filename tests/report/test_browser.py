"""The page in a browser: sorting, filters and zoom by keyboard, on a desktop and a phone, without a network."""

import shutil

import numpy as np
import pytest
from PIL import Image

from zsad_jax import metrics
from zsad_jax.metrics import Value
from zsad_jax.report import charts, gallery, heatmap, html_page

CHROME = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
sync_api = pytest.importorskip('playwright.sync_api', reason='playwright drives the browser')
pytestmark = pytest.mark.skipif(CHROME is None, reason='no Chromium or Chrome is installed')

SIZES = {'desktop': (1300, 900), 'phone': (390, 844)}
ODD = '<script>document.title="caught"</script>"\'&'
ROWS = {name: {'image_auroc': Value(value), 'aupro': Value(other, '' if other else 'no anomalous pixels')}
        for name, value, other in (('bolt', .5, .25), (ODD, .9, None), ('wood', .7, .95))}
SUMMARY = {'image_auroc': dict(value=.7, count=3, of=3, reason=''), 'aupro': dict(value=.6, count=2, of=3, reason='')}


def examples():
  for i, (category, label, score) in enumerate(
      (('bolt', 1, .15), ('bolt', 0, .8), (ODD, 1, .9), (ODD, 0, .1), ('wood', 1, .4), ('wood', 0, .62))):
    pixels = np.full((48, 64, 3), 40 * i, np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20, 10:30] = 255 * label
    yield gallery.Example(Image.fromarray(pixels), mask, np.full((8, 8), score), score, label, f'{ODD}{i}', category)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  rng = np.random.default_rng(0)
  pixel = metrics.PixelMetrics()
  pixel.update(rng.random((2, 8, 8)), rng.integers(0, 2, (2, 8, 8)))
  of_category = {name: charts.category_charts(row, rng.random(9), np.arange(9) % 2, pixel.curves(), pixel.histogram(),
                                              score=.5) for name, row in ROWS.items()}
  path = tmp_path_factory.mktemp('page') / 'index.html'
  path.write_text(html_page.render(
    f'a run of {ODD}', [ODD], ROWS, SUMMARY, {'aupro': 81.4}, charts=of_category, examples=examples(), count=6,
    rule=html_page.Rule(.5, 'Anomalous from 0.5 on.', heatmap.threshold_scale(0, .5, 1)),
    sheets={'wood': 'pictures/wood.png'}), encoding='utf-8')
  return path


@pytest.fixture(scope='module')
def browser():
  with sync_api.sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=CHROME, args=['--no-sandbox'])
    yield browser
    browser.close()


@pytest.fixture(params=SIZES)
def opened(request, browser, file):
  """The page at both sizes; fails if the test leaves a console message or fetches anything."""
  width, height = SIZES[request.param]
  tab = browser.new_page(viewport={'width': width, 'height': height})
  messages, fetched = [], []
  tab.on('console', lambda message: messages.append(message.text))
  tab.on('pageerror', lambda error: messages.append(str(error)))
  tab.on('request', lambda request: fetched.append(request.url))
  tab.goto(file.as_uri())
  yield tab
  assert messages == []
  assert [url for url in fetched if not url.startswith('data:')] == [file.as_uri()]
  tab.close()


def names(tab):
  return tab.locator('tbody th').all_inner_texts()


def cards(tab):
  return tab.evaluate('[...document.querySelectorAll(".cards > li")].filter(c => !c.hidden).map(c => c.dataset.number)')


def test_a_column_sorts_both_ways_with_undefined_cells_last(opened):
  head = opened.locator('thead th').nth(2)
  for key, order in (('Enter', ['wood', 'bolt', ODD]), ('Space', ['bolt', 'wood', ODD])):
    head.locator('button').press(key)
    assert names(opened) == order
  assert head.get_attribute('aria-sort') == 'ascending'
  assert opened.locator('tfoot th').all_inner_texts() == ['mean', 'published']
  opened.locator('thead button').first.click()
  assert sorted(names(opened), key=str.lower)[-1] == names(opened)[-1] == 'wood'
  assert opened.locator('[aria-sort]').count() == 1


def test_images_are_filtered_and_ordered(opened):
  assert cards(opened) == ['0', '1', '2', '3', '4', '5']
  choose = lambda name, value: opened.locator(f'select[name={name}]').select_option(value)
  choose('category', ODD)
  assert cards(opened) == ['2', '3']
  assert opened.locator('section:visible').count() == 1
  assert opened.locator('output').inner_text() == '2 of 6 images'
  choose('category', '')
  for kind, order, want in (('error', 'worst', '0154'), ('false-alarm', 'worst', '15'), ('missed', 'lowest', '04'),
                            ('verdict-anomalous', 'highest', '215'), ('normal', 'listed', '135')):
    choose('kind', kind)
    choose('order', order)
    assert ''.join(cards(opened)) == want, (kind, order)


def test_an_image_is_enlarged_and_closed_by_keyboard(opened):
  opened.locator('select[name=kind]').select_option('anomalous')
  first = opened.locator('.card:visible').first
  small = first.locator('img').first.bounding_box()['width']
  first.focus()
  opened.keyboard.press('Enter')
  dialog = opened.get_by_role('dialog')
  assert dialog.is_visible() and dialog.locator('img').count() == 3
  assert dialog.locator('img').first.bounding_box()['width'] > 1.5 * small
  opened.keyboard.press('ArrowRight')
  assert f'{ODD}2' in dialog.inner_text()
  opened.keyboard.press('ArrowLeft')
  opened.keyboard.press('ArrowLeft')
  assert f'{ODD}4' in dialog.inner_text()
  opened.keyboard.press('Escape')
  assert not dialog.is_visible()
  # The close event comes a moment later.
  sync_api.expect(opened.locator('li[data-number="4"] .card')).to_be_focused()


def test_nothing_is_wider_than_the_screen_and_no_name_is_markup(opened):
  assert opened.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
  assert opened.title() == f'a run of {ODD}'
  assert opened.locator('p').first.inner_text() == ODD
  assert opened.locator('img').evaluate_all('all => all.every(i => i.complete && i.naturalWidth > 0)')
  images = opened.locator('.card .row').first.locator('img')
  row = images.evaluate_all('all => all.map(i => i.getBoundingClientRect().top)')
  assert len(row) == 3 and np.ptp(row) < 1
