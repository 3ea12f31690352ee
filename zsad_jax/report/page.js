'use strict';
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Tables: clicking a heading sorts the categories by it, undefined cells last; the mean and the published row stay put.
for (const table of all('table.sortable')) {
  const body = table.tBodies[0], heads = all('thead th', table);
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') === 'descending' || (column === 0 && !head.hasAttribute('aria-sort'));
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (column === 0) return (up ? 1 : -1) * x.localeCompare(y, undefined, {numeric: true});
      if (x === '' || y === '') return (x === '') - (y === '');
      return (up ? 1 : -1) * (x - y);
    };
    body.append(...[...body.rows].sort(compare));
  }));
}

// Images: filter and order.
const form = document.querySelector('.filters'), list = document.querySelector('.cards');
const cards = list ? [...list.children] : [];
const orders = {
  listed: card => Number(card.dataset.number),
  highest: card => -card.dataset.score,
  lowest: card => Number(card.dataset.score),
  worst: card => (card.dataset.score - list.dataset.threshold) * (card.dataset.label === '1' ? 1 : -1),
};
const filters = {
  all: () => true, anomalous: data => data.label === '1', normal: data => data.label === '0',
  error: data => data.error !== '', 'false-alarm': data => data.error === 'false-alarm',
  missed: data => data.error === 'missed',
  'verdict-anomalous': data => data.verdict === '1', 'verdict-normal': data => data.verdict === '0',
};

function update() {
  const {category, kind, order} = Object.fromEntries(new FormData(form));
  let count = 0;
  for (const card of cards) {
    card.hidden = !((category === '' || card.dataset.category === category) && filters[kind](card.dataset));
    count += !card.hidden;
  }
  for (const section of all('section')) section.hidden = category !== '' && section.dataset.category !== category;
  list.append(...cards.sort((a, b) => orders[order](a) - orders[order](b)));
  form.querySelector('output').textContent = `${count} of ${cards.length} images`;
}

if (form) {
  form.addEventListener('input', update);
  form.addEventListener('submit', event => event.preventDefault());
  form.addEventListener('reset', () => setTimeout(update));
  update();
}

// Zoom: a card is a button, so Enter opens it. Arrow keys move on, Escape closes, and the focus returns to the card.
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
  const visible = cards.filter(card => !card.hidden);
  zoom(visible[(visible.indexOf(current) + by + visible.length) % visible.length]);
}

if (dialog) {
  for (const card of cards) card.querySelector('.card').addEventListener('click', () => zoom(card));
  dialog.querySelector('.previous').addEventListener('click', () => step(-1));
  dialog.querySelector('.next').addEventListener('click', () => step(1));
  dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => current.querySelector('.card').focus());
  dialog.addEventListener('keydown', event => {
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
}
