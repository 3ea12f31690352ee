'use strict';
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Tables: a click on a heading sorts by it, undefined cells last; the mean and what is published stay below.
for (const table of all('table.sortable')) {
  const body = table.tBodies[0], heads = all('thead th', table);
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') === 'descending' || (column === 0 && !head.hasAttribute('aria-sort'));
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (column === 0) return (up ? 1 : -1) * x.localeCompare(y, undefined, {numeric: true});
      if (x === '' || y === '') return (x === '') - (y === '');
      return (up ? 1 : -1) * (x - y);
    };
    body.append(...[...body.rows].sort(order));
  }));
}

// Pictures: filters and order.
const form = document.querySelector('.filters'), list = document.querySelector('.cards');
const cards = list ? [...list.children] : [];
const orders = {
  listed: card => Number(card.dataset.number),
  highest: card => -card.dataset.score,
  lowest: card => Number(card.dataset.score),
  worst: card => (card.dataset.score - list.dataset.threshold) * (card.dataset.label === '1' ? 1 : -1),
};

function show() {
  const {category, kind, order} = Object.fromEntries(new FormData(form));
  const fits = {
    all: () => true, anomalous: data => data.label === '1', normal: data => data.label === '0',
    alarm: data => data.wrong === 'alarm', missed: data => data.wrong === 'missed', wrong: data => data.wrong !== '',
    called: data => data.called === '1', uncalled: data => data.called === '0',
  }[kind];
  let left = 0;
  for (const card of cards) {
    card.hidden = !((category === '' || card.dataset.category === category) && fits(card.dataset));
    left += !card.hidden;
  }
  for (const part of all('section')) part.hidden = category !== '' && part.dataset.category !== category;
  list.append(...cards.sort((a, b) => orders[order](a) - orders[order](b)));
  form.querySelector('output').textContent = `${left} of ${cards.length} pictures`;
}

if (form) {
  form.addEventListener('input', show);
  form.addEventListener('submit', event => event.preventDefault());
  form.addEventListener('reset', () => setTimeout(show));
  show();
}

// Zoom: a card is a button, so Enter opens it; arrows go on, Escape closes, and the focus goes back to the card.
const dialog = document.querySelector('dialog');
let current = null;

function zoom(card) {
  current = card;
  const copy = document.createElement('div');
  copy.className = card.querySelector('.card').className + ' bare';
  copy.append(...[...card.querySelector('.card').children].map(child => child.cloneNode(true)));
  dialog.querySelector('.place').replaceChildren(copy);
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const seen = cards.filter(card => !card.hidden);
  zoom(seen[(seen.indexOf(current) + by + seen.length) % seen.length]);
}

if (dialog) {
  for (const card of cards) card.querySelector('.card').addEventListener('click', () => zoom(card));
  dialog.querySelector('.back').addEventListener('click', () => step(-1));
  dialog.querySelector('.on').addEventListener('click', () => step(1));
  dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => current.querySelector('.card').focus());
  dialog.addEventListener('keydown', event => {
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
}
