"""Objects: each function draws one flawless piece, (rng, size, paint) -> Scene; `paint` [3] is its main reflectance.

Pretraining: washer, gear, button, biscuit, microchip, key, bolt, toy, plate, domino. Auxiliary: capsule, battery,
plug. Target: cable, leaf, jar_lid.
"""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from zsad_jax.data.synthetic.canvas import Grid, Scene, box, circle, colour, lerp, noise, part, pose, segment, step

PLAIN = ('white', 'gray', 'black', 'beige', 'blue', 'green', 'brown')


def start(rng: Generator, size: int, tilt: float = np.pi, low: float = .62, high: float = .95, reach: float = .14
          ) -> tuple[Scene, Grid]:
  """Returns an empty table and a random pose on it."""
  base = colour(rng, rng.choice(PLAIN), .08)
  field = np.zeros((size, size), np.float32)
  if rng.random() < .6:
    field = noise(rng, size, rng.choice([3., 8., 30.]), 2) * np.float32(rng.uniform(.01, .07))
  ground = base[None, None] * (1 + field)[..., None]
  grid = pose(size, rng.uniform(-tilt, tilt), rng.uniform(low, high), rng.uniform(-reach, reach, 2))
  blank = np.zeros((size, size), np.float32)
  return Scene(np.broadcast_to(base, (size, size, 3)), blank, blank, ground, rng.choice([0., .3, .8])), grid


def apart(rng: Generator, paint: np.ndarray, choices: Sequence[str] | None = None) -> np.ndarray:
  """Returns a second colour that stands out from `paint`."""
  names = list(choices or ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'white', 'black', 'silver', 'brown'))
  for name in rng.permutation(names):
    second = colour(rng, name)
    if np.abs(second - paint).sum() > .5:
      return second
  return np.float32(1) - paint


def rough(rng: Generator, scene: Scene, cells: float, strength: float) -> Scene:
  """Returns the scene with uneven reflectance."""
  field = noise(rng, scene.height.shape[0], cells, 2)
  return scene._replace(albedo=scene.albedo * (1 + np.float32(strength) * field)[..., None])


def radial(grid: Grid, count: int, phase: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns coordinates folded into one of `count` equal sectors: along the sector's axis, and across it."""
  r, sector = np.hypot(grid.u, grid.v), np.float32(2 * np.pi / count)
  angle = (np.arctan2(grid.v, grid.u) + np.float32(phase)) % sector - sector / 2
  return r * np.cos(angle), r * np.sin(angle)


def washer(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size)
  r = np.hypot(grid.u, grid.v)
  inner, outer = rng.uniform(.25, .45), rng.uniform(.7, .85)
  ring = np.maximum(r - np.float32(outer), np.float32(inner) - r)
  scene = part(scene, grid, ring, paint, .5, rng.uniform(.04, .12), cover=True)
  if rng.random() < .5:
    groove = np.abs(r - np.float32((inner + outer) / 2)) - np.float32(.03)
    scene = part(scene, grid, groove, paint * np.float32(.7), -.2)
  return rough(rng, scene, 12, .03)


def gear(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size)
  teeth, depth = int(rng.integers(8, 15)), rng.uniform(.08, .14)
  a, b = radial(grid, teeth, 0.)
  pitch = .72 * np.pi / teeth * rng.uniform(.45, .6)
  tooth = np.maximum(a - np.float32(.75 + depth), np.abs(b) - np.float32(pitch))
  body = np.maximum(np.minimum(circle(grid.u, grid.v, .72), np.maximum(tooth, -a)), -circle(grid.u, grid.v, .2))
  scene = part(scene, grid, body, paint, .5, .05, cover=True)
  holes = int(rng.integers(0, 6))
  if holes > 2:
    a, b = radial(grid, holes, rng.uniform(0, 6))
    disc = circle(a - np.float32(.46), b, rng.uniform(.08, .12))
    scene = part(scene, grid, disc, paint * np.float32(.35), -.3, .05)
  return rough(rng, scene, 15, .03)


def button(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size)
  scene = part(scene, grid, circle(grid.u, grid.v, .8), paint, .5, .12, cover=True)
  dish = circle(grid.u, grid.v, rng.uniform(.5, .64))
  scene = part(scene, grid, dish, paint * np.float32(rng.uniform(.8, 1.)), -.3, .08)
  holes, away = int(rng.choice([2, 4])), rng.uniform(.18, .26)
  a, b = radial(grid, holes, 0.)
  return part(scene, grid, circle(a - np.float32(away), b, rng.uniform(.07, .1)), paint * np.float32(.2), -.3, .05)


def biscuit(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size)
  edge = box(grid.u, grid.v, .8, rng.uniform(.55, .8), .15) if rng.random() < .5 else circle(grid.u, grid.v, .8)
  edge = edge + np.float32(.03) * np.cos(np.arctan2(grid.v, grid.u) * int(rng.integers(16, 30)))
  scene = rough(rng, part(scene, grid, edge, paint, .5, .15, cover=True), 14, .07)
  pitch = np.float32(rng.uniform(.22, .34))
  x, y = (grid.u + pitch / 2) % pitch - pitch / 2, (grid.v + pitch / 2) % pitch - pitch / 2
  dots = np.maximum(circle(x, y, .04), edge + np.float32(.15))
  return part(scene, grid, dots, paint * np.float32(.5), -.3, .04)


def microchip(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size, .5)
  half, pins = rng.uniform(.4, .6), int(rng.integers(5, 9))
  pitch = np.float32(1.5 / pins)
  x = (grid.u + (0 if pins % 2 else pitch / 2) + pitch / 2) % pitch - pitch / 2
  legs = np.maximum(box(x, grid.v, pitch * .28, half + .22), np.abs(grid.u) - np.float32(.75))
  scene = part(scene, grid, legs, colour(rng, rng.choice(['silver', 'yellow'])), .3, .04, cover=True)
  scene = part(scene, grid, box(grid.u, grid.v, .8, half, .04), paint * np.float32(.6), .4, .06, cover=True)
  scene = part(scene, grid, circle(grid.u + np.float32(.62), grid.v - np.float32(half * .6), .06), paint, -.2, .03)
  for row in range(int(rng.integers(0, 3))):
    text = np.maximum(box(grid.u, grid.v - np.float32(.16 * row - .1), .4, .045),
                      np.sin(grid.u * np.float32(rng.uniform(25, 45))) * np.float32(.05))
    scene = part(scene, grid, text, apart(rng, paint, ('white', 'silver', 'yellow')))
  return rough(rng, scene, 20, .02)


def key(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size)
  bow = np.maximum(circle(grid.u + np.float32(.5), grid.v, .33), -circle(grid.u + np.float32(.6), grid.v, .12))
  teeth = np.float32(.05) * np.sign(np.sin(grid.u * np.float32(rng.uniform(14, 26)) + np.float32(rng.uniform(0, 6))))
  blade = box(grid.u - np.float32(.3), grid.v, .55, .12, .02)
  bite = grid.v - np.float32(.05) - teeth
  blade = np.where(grid.u > .15, np.maximum(blade, bite), blade)
  scene = part(scene, grid, np.minimum(bow, blade), paint, .5, .05, cover=True)
  scene = part(scene, grid, segment(grid.u, grid.v, (-.1, -.05), (.8, -.05), .02), paint * np.float32(.6), -.2, .02)
  return rough(rng, scene, 14, .03)


def bolt(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size)
  thick, f = rng.uniform(.13, .2), np.float32(rng.uniform(28, 44))
  wave = np.sin(grid.u * f + grid.v * np.float32(4))
  shank = box(grid.u - np.float32(.22), grid.v, .62, thick) + np.float32(.015) * wave
  scene = part(scene, grid, shank, paint, .6, thick, cover=True)
  thread = (grid.u > -.1) * scene.cover
  scene = scene._replace(albedo=scene.albedo * (1 + np.float32(.13) * wave * thread)[..., None],
                         height=scene.height + np.float32(.12) * wave * thread)
  head = box(grid.u + np.float32(.55), grid.v, .2, rng.uniform(.33, .45), .05)
  scene = part(scene, grid, head, paint, .3, .06, cover=True)
  return rough(rng, scene, 14, .03)


def toy(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  """Two to five simple shapes in several colours; since all pieces differ, only damage is unusual."""
  scene, grid = start(rng, size)
  for i in range(int(rng.integers(2, 6))):
    turn, reach = rng.uniform(0, 6.3), rng.uniform(.1, .45) * (i > 0)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u = grid.u * c + grid.v * s - np.float32(reach)
    v = grid.v * c - grid.u * s
    kind, width = rng.integers(4), rng.uniform(.22, .5)
    shape = (circle(u, v, width) if kind == 0 else box(u, v, width, rng.uniform(.2, .5), .06) if kind == 1
             else segment(u, v, (-width, 0), (width, 0), rng.uniform(.1, .25)) if kind == 2
             else np.maximum(circle(u, v, width), -circle(u, v, width * .5)))
    tone = paint if i == 0 else colour(rng, rng.choice(['red', 'yellow', 'blue', 'green', 'white', 'orange']))
    scene = part(scene, grid, shape, tone, .4, rng.uniform(.04, .15), cover=True)
  return rough(rng, scene, rng.choice([6, 20]), rng.uniform(0, .06))


def plate(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size, low=.7)
  r = np.hypot(grid.u, grid.v)
  scene = part(scene, grid, r - np.float32(.85), paint, .4, .08, cover=True)
  scene = part(scene, grid, r - np.float32(rng.uniform(.5, .62)), paint * np.float32(.95), -.35, .08)
  if rng.random() < .7:
    count = int(rng.integers(8, 28))
    a, b = radial(grid, count, 0.)
    scene = part(scene, grid, circle(a - np.float32(.72), b, .05), apart(rng, paint))
  if rng.random() < .5:
    ring = np.abs(r - np.float32(.8)) - np.float32(.02)
    scene = part(scene, grid, ring, apart(rng, paint))
  return scene


def domino(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size, low=.75)
  dots = apart(rng, paint)
  scene = part(scene, grid, box(grid.u, grid.v, .82, .44, rng.uniform(.02, .12)), paint, .5, .06, cover=True)
  scene = part(scene, grid, box(grid.u, grid.v, .015, .36), dots)
  for side in (-1, 1):
    x, y = grid.u - np.float32(.42 * side), grid.v
    count = int(rng.integers(1, 7))
    spots = [(0, 0)] * (count % 2) + [(.22, .22), (-.22, -.22)] * (count > 1) + [(.22, -.22), (-.22, .22)] * (count > 3)
    spots += [(0, .22), (0, -.22)] * (count > 5)
    for a, b in spots:
      scene = part(scene, grid, circle(x - np.float32(a), y - np.float32(b), .07), dots, -.2, .03)
  return scene


def capsule(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size)
  long, thick = rng.uniform(.4, .55), rng.uniform(.24, .34)
  body = segment(grid.u, grid.v, (-long, 0), (long, 0), thick)
  scene = part(scene, grid, body, paint, 1.2, thick, cover=True)
  half = np.maximum(body, np.float32(rng.uniform(-.15, .15)) - grid.u)
  tone = apart(rng, paint)
  scene = scene._replace(albedo=lerp(scene.albedo, np.broadcast_to(tone, scene.albedo.shape),
                                     step(half, grid.pixel * 1.5)))
  if rng.random() < .6:
    text = np.sin(grid.u * np.float32(50)) * np.float32(.05)
    text = np.maximum(text, box(grid.u + np.float32(.25), grid.v, .16, .06))
    scene = part(scene, grid, text, apart(rng, paint, ('white', 'black', 'red')))
  return scene


def battery(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size)
  thick = rng.uniform(.24, .34)
  nub = box(grid.u - np.float32(.82), grid.v, .07, thick * .4, .02)
  scene = part(scene, grid, nub, colour(rng, 'silver'), .3, .05, cover=True)
  body = box(grid.u, grid.v, .78, thick, .04)
  scene = part(scene, grid, body, paint, 1.1, thick, cover=True)
  band = np.maximum(body, np.float32(rng.uniform(.2, .45)) - grid.u)
  scene = part(scene, grid, band, apart(rng, paint))
  for offset in rng.uniform(-.6, .1, int(rng.integers(1, 3))):
    mark = np.maximum(box(grid.u - np.float32(offset), grid.v, .1, .1, .02), body)
    scene = part(scene, grid, mark, apart(rng, paint, ('white', 'black', 'yellow')))
  return scene


def plug(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size, .6)
  pins, wide = int(rng.integers(2, 5)), rng.uniform(.45, .7)
  for x in np.linspace(-wide * .7, wide * .7, pins):
    pin = box(grid.u - np.float32(x), grid.v + np.float32(.6), .055, .28, .03)
    scene = part(scene, grid, pin, colour(rng, 'silver', .02), .4, .05, cover=True)
  scene = part(scene, grid, box(grid.u, grid.v - np.float32(.1), wide, .4, .1), paint, .5, .1, cover=True)
  cord = box(grid.u, grid.v - np.float32(.7), .14, .3, .03)
  scene = part(scene, grid, cord, paint * np.float32(.8), .6, .12, cover=True)
  for y in np.linspace(-.1, .3, int(rng.integers(2, 5))):
    scene = part(scene, grid, box(grid.u, grid.v - np.float32(y), wide * .7, .025), paint * np.float32(.65), -.2, .02)
  return scene


def cable(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  """Cross-section of a jacket around a few insulated wires with stranded cores."""
  scene, grid = start(rng, size, low=.7)
  scene = part(scene, grid, circle(grid.u, grid.v, .85), paint, .3, .05, cover=True)
  scene = part(scene, grid, circle(grid.u, grid.v, .74), paint * np.float32(.55), -.2, .05)
  copper = colour(rng, rng.choice(['orange', 'silver']))
  strand = noise(rng, size, 40 * size / 112) * np.float32(.2)
  tones, turn = rng.permutation(['green', 'blue', 'brown', 'yellow', 'gray', 'red']), rng.uniform(0, 6.3)
  wires = int(rng.integers(2, 5))
  for k in range(wires):
    at = turn + 2 * np.pi * k / wires
    u, v = grid.u - np.float32(.38 * np.cos(at)), grid.v - np.float32(.38 * np.sin(at))
    radius = {2: .34, 3: .3, 4: .25}[wires]
    scene = part(scene, grid, circle(u, v, radius), colour(rng, tones[k]), .3, .06)
    scene = part(scene, grid, circle(u, v, radius * .62), copper * (1 + strand)[..., None], -.1, .03)
  return scene


def leaf(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size, low=.75)
  fat, wave = rng.uniform(.4, .6), rng.uniform(0, .04)
  span = np.maximum(1 - (grid.u / np.float32(.88)) ** 2, 0)
  rim = np.float32(fat) * span * (1 + np.float32(.25) * grid.u)
  edge = np.abs(grid.v) - rim + np.float32(wave) * np.sin(grid.u * np.float32(40))
  edge = np.maximum(edge, np.abs(grid.u) - np.float32(.88))
  stalk = segment(grid.u, grid.v, (-1.1, 0), (-.8, 0), .025)
  scene = part(scene, grid, np.minimum(edge, stalk), paint, .3, .2, cover=True)
  ribs = np.abs((grid.u - np.abs(grid.v) * np.float32(.8)) % np.float32(.22) - np.float32(.11)) - np.float32(.012)
  veins = np.maximum(np.minimum(ribs, np.abs(grid.v) - np.float32(.02)), edge + np.float32(.03))
  scene = part(scene, grid, veins, np.minimum(paint * np.float32(1.3), 1), .1, .02)
  return rough(rng, scene, 9, .07)


def jar_lid(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  scene, grid = start(rng, size, low=.72)
  ridges = int(rng.integers(30, 50))
  angle = np.arctan2(grid.v, grid.u)
  r = np.hypot(grid.u, grid.v)
  rim = r - np.float32(.86) + np.float32(.015) * np.cos(angle * ridges)
  scene = part(scene, grid, rim, paint * np.float32(.8), .5, .1, cover=True)
  scene = part(scene, grid, r - np.float32(.74), paint, .3, .06)
  scene = part(scene, grid, np.abs(r - np.float32(rng.uniform(.55, .64))) - np.float32(.03), paint, .2, .03)
  tone, kind = apart(rng, paint), rng.integers(3)
  logo = (box(grid.u, grid.v, .3, .12, .03) if kind == 0 else np.abs(r - np.float32(.3)) - np.float32(.06) if kind == 1
          else np.maximum(np.abs(grid.u), np.abs(grid.v)) - np.float32(.24))
  return part(scene, grid, logo, tone)
