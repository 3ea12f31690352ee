"""The page of a run: what it says is true of its data sets, and nothing in it breaks the markup."""

import html.parser
from types import SimpleNamespace

import numpy as np

from zsad_jax.metrics import Value
from zsad_jax.report import page

ROWS = {'nut <M5>': {'image_auroc': Value(.875, ''), 'aupro': Value(None, 'no mask & no hope')},
        'wood': {'image_auroc': Value(.5, ''), 'aupro': Value(.25, '')}}
SUMMARY = {'image_auroc': dict(value=.6875, count=2, of=2, reason=''),
           'aupro': dict(value=.25, count=1, of=2, reason='')}


class Sized(SimpleNamespace):
  def __len__(self):
    return len(self.labels)


def test_page_holds_the_table_and_the_pictures():
  text = page.render('run <1>', ['What & why'], ROWS, SUMMARY, {'aupro': 81.4}, {'wood': 'pictures/wood #1.png'})
  cells, sources = [], []

  class Parser(html.parser.HTMLParser):
    def handle_data(self, data):
      cells.append(data.strip())

    def handle_starttag(self, tag, attrs):
      if tag == 'img':
        sources.append(dict(attrs)['src'])

  Parser().feed(text)
  for expected in ('run <1>', 'What & why', 'nut <M5>', '87.5', '25.0', '68.8', '81.4', '-'):
    assert expected in cells, expected
  assert sources == ['pictures/wood%20%231.png']
  assert 'title="no mask &amp; no hope"' in text
  assert 'http' not in text


def test_published_line_only_where_there_is_one():
  assert 'published' not in page.render('run', [], ROWS, SUMMARY, None, {})


def test_explanation_counts_and_names_what_is_new():
  aux = Sized(name='aux', categories=('bolt', 'tile'), defect_types=['good', 'crack'], labels=np.array([0, 1]))
  defects = ['good', 'glue', 'crack']
  target = Sized(name='target', categories=('leaf',), defect_types=defects, labels=np.array([0, 1, 1]))
  done, tested, _, tiny = page.explain('anomalyclip', 'tiny', 112, 768, aux, target)
  assert '768 numbers were learned on 2 images of aux (1 normal, 1 anomalous; bolt, tile)' in done
  assert '3 images of target (1 normal, 2 anomalous; leaf)' in tested
  assert 'None of these kinds of things was trained on' in tested and 'new too: glue.' in tested
  assert 'not how anomalyclip performs' in tiny
  assert len(page.explain('anomalyclip', 'vit_l14_336', 518, 768, aux, target)) == 3


def test_explanation_admits_what_was_trained_on():
  both = Sized(name='set', categories=('leaf',), defect_types=['good', 'glue'], labels=np.array([0, 1]))
  tested = page.explain('anomalyclip', 'vit_l14_336', 518, 1, both, both, shared=2)[1]
  assert '2 of these images were trained on' in tested and 'not zero-shot' in tested


def test_one_word_for_two_sets_is_not_what_was_trained_on():
  aux, target = (Sized(name=n, categories=('colon',), defect_types=['good', 'polyp'], labels=np.array([0, 1]))
                 for n in ('colon_ad', 'kvasir_seg'))
  tested = page.explain('anomalyclip', 'vit_l14_336', 518, 1, aux, target)[1]
  assert tested.endswith('None of these images was trained on.')


def test_nothing_trained():
  target = Sized(name='t', categories=('leaf',), defect_types=['good'], labels=np.array([0]))
  done, tested, _ = page.explain('clip', 'vit_b32', 224, 0, None, target)
  assert 'no image was trained on' in done and 'new too' not in tested
