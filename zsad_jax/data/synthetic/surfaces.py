"""Surfaces: each function draws one flawless piece, (rng, size, paint) -> Scene; `paint` [3] is its main reflectance.

Pretraining: wood, brick, fabric, concrete, tile, marble, brushed_metal, printed_paper, sponge.
Auxiliary: leather, carpet, mesh. Target: terrazzo, knit, shingle.
"""

import numpy as np
from numpy.random import Generator

from zsad_jax.data.synthetic.canvas import Grid, Scene, colour, lerp, noise, pose, step


def scene(albedo: np.ndarray, height: np.ndarray, gloss: float = 0.) -> Scene:
  """Returns a scene that fills the image."""
  size = albedo.shape[0]
  return Scene(np.clip(albedo, 0, 1).astype(np.float32), height.astype(np.float32),
               np.ones((size, size), np.float32), np.zeros((size, size, 3), np.float32), gloss)


def tone(paint: np.ndarray, field: np.ndarray) -> np.ndarray:
  """Returns `paint` [3] made lighter and darker by a field [R, R]."""
  return paint[None, None] * (1 + field)[..., None]


def view(rng: Generator, size: int, tilt: float = np.pi, low: float = .8, high: float = 1.3) -> Grid:
  """Returns a random pose: turned by up to `tilt` radians, enlarged by `low` to `high`."""
  return pose(size, rng.uniform(-tilt, tilt) if tilt else 0., rng.uniform(low, high), rng.uniform(-.5, .5, 2))


def hashed(i: np.ndarray, j: np.ndarray, salt: int) -> np.ndarray:
  """Returns float32 uniform in [0, 1), a fixed function of integer cell coordinates."""
  mixed = (i.astype(np.int64) * 73856093) ^ (j.astype(np.int64) * 19349663) ^ (salt * 83492791)
  return ((mixed * 2654435761 >> 7) & 0xffff).astype(np.float32) / np.float32(65536)


def cells(u: np.ndarray, v: np.ndarray, pitch: float, shape: float = 1., stagger: float = 0.
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns cell numbers (i, j) and places (x, y) in [-1, 1] within cells, for bricks of pitch x (pitch * shape)."""
  row = v / np.float32(pitch * shape)
  j = np.floor(row)
  column = u / np.float32(pitch) + np.float32(stagger) * (j % 2)
  i = np.floor(column)
  return i, j, (column - i) * 2 - 1, (row - j) * 2 - 1


def wood(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size, .25)
  warp = noise(rng, size, 2.5, 2) * np.float32(.12)
  rings = np.sin((grid.u * np.float32(rng.uniform(5, 10)) + grid.v * np.float32(.4) + warp * 8)
                 * np.float32(rng.uniform(1, 2.2)))
  fibre = noise(rng, size, size / 3, 1, stretch=rng.uniform(6, 12))
  field = rings * np.float32(rng.uniform(.05, .13)) + fibre * np.float32(rng.uniform(.03, .08))
  if rng.random() < .4:
    plank = np.abs(((grid.u + np.float32(rng.uniform(0, 1))) % np.float32(.9)) - np.float32(.45))
    field -= np.float32(.35) * step(plank - np.float32(.012), grid.pixel * 2)
  return scene(tone(paint, field), fibre * np.float32(.06), .1)


def brick(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size, .15)
  i, j, x, y = cells(grid.u, grid.v, rng.uniform(.5, .8), rng.uniform(.4, .55), .5)
  joint = rng.uniform(.04, .08)
  inside = step(np.maximum(np.abs(x) - (1 - joint), np.abs(y) - (1 - joint * 2.2)), grid.pixel * 4)
  salt = int(rng.integers(1 << 16))
  rough = noise(rng, size, size / 4, 2)
  stone = tone(paint, (hashed(i, j, salt) - .5) * np.float32(.35) + rough * np.float32(.06))
  mortar = tone(colour(rng, rng.choice(['gray', 'beige', 'white'])), rough * np.float32(.05))
  return scene(lerp(mortar, stone, inside), inside * np.float32(.35) + rough * np.float32(.07))


def fabric(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size)
  f = np.float32(rng.uniform(22, 38))
  warp = noise(rng, size, 3) * np.float32(.25)
  a, b = np.sin(grid.u * f + warp), np.sin(grid.v * f + warp)
  over = a * b
  field = over * np.float32(rng.uniform(.06, .14)) + noise(rng, size, 5, 2) * np.float32(.03)
  albedo = tone(paint, field)
  if rng.random() < .35:
    stripe = step(np.cos(grid.u * np.float32(rng.uniform(4, 8))) - np.float32(.3), .2)
    albedo = lerp(albedo, albedo * colour(rng, 'gray') * 1.4, 1 - stripe)
  return scene(albedo, over * np.float32(.2))


def concrete(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  coarse, fine = noise(rng, size, 4, 3), noise(rng, size, size / 2.2)
  pores = np.clip(noise(rng, size, rng.uniform(22, 34)) - np.float32(rng.uniform(2., 2.5)), 0, .6)
  field = coarse * np.float32(rng.uniform(.04, .1)) + fine * np.float32(.05) - pores * np.float32(.5)
  return scene(tone(paint, field), fine * np.float32(.1) - pores)


def tile(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size, .3)
  i, j, x, y = cells(grid.u, grid.v, rng.uniform(.4, .8))
  inside = step(np.maximum(np.abs(x), np.abs(y)) - np.float32(rng.uniform(.9, .95)), grid.pixel * 4)
  second = colour(rng, rng.choice(['white', 'beige', 'gray'])) if rng.random() < .5 else paint
  base = lerp(np.broadcast_to(paint, (size, size, 3)), np.broadcast_to(second, (size, size, 3)),
              (i + j) % 2)
  field = (hashed(i, j, int(rng.integers(1 << 16))) - .5) * np.float32(.1) + noise(rng, size, 6, 2) * np.float32(.03)
  return scene(lerp(np.broadcast_to(colour(rng, 'gray'), base.shape), base * (1 + field)[..., None], inside),
                inside * np.float32(.3), .5)


def marble(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size)
  flow = noise(rng, size, 2.5, 4)
  vein = 1 - np.abs(np.sin(grid.u * np.float32(rng.uniform(1.5, 3)) + flow * np.float32(rng.uniform(.8, 1.6))))
  vein = np.float32(rng.uniform(.5, 1)) * vein ** 6
  second = colour(rng, rng.choice(['gray', 'brown', 'white', 'black', 'green']))
  base = tone(paint, noise(rng, size, 3, 3) * np.float32(.06))
  return scene(lerp(base, np.broadcast_to(second, base.shape), vein), np.zeros((size, size)), .2)


def brushed_metal(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  streak = noise(rng, size, size / 1.6, 1, stretch=size / 3)
  if rng.random() < .5:
    streak = np.ascontiguousarray(streak.T)
  field = streak * np.float32(rng.uniform(.04, .1)) + noise(rng, size, 2) * np.float32(.06)
  return scene(tone(paint, field), streak * np.float32(.03), .3)


def printed_paper(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size, .4)
  _, _, x, y = cells(grid.u, grid.v, rng.uniform(.18, .34), 1., rng.choice([0., .5]))
  kind = rng.integers(3)
  mark = (np.hypot(x, y) - np.float32(.5) if kind == 0 else np.abs(x) + np.abs(y) - np.float32(.6) if kind == 1
          else np.maximum(np.abs(x) - np.float32(.75), np.abs(y) - np.float32(.2)))
  ink = colour(rng, rng.choice(['red', 'blue', 'black', 'green', 'purple', 'orange', 'white', 'brown']))
  base = tone(paint, noise(rng, size, 10, 2) * np.float32(.02))
  return scene(lerp(base, np.broadcast_to(ink, base.shape), step(mark, grid.pixel * 8)), np.zeros((size, size)))


def sponge(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  field = noise(rng, size, rng.uniform(9, 16), 3)
  pores = np.clip(field - np.float32(rng.uniform(.5, 1.1)), 0, 1.2)
  return scene(tone(paint, -pores * np.float32(.35) + noise(rng, size, size / 3) * np.float32(.03)),
                -pores * np.float32(.7) + field * np.float32(.1))


def leather(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grain = noise(rng, size, rng.uniform(20, 34), 2)
  crease = np.abs(grain)
  field = np.minimum(crease, 1) * np.float32(rng.uniform(.1, .2)) + noise(rng, size, 4, 2) * np.float32(.05)
  return scene(tone(paint, field - np.float32(.08)), np.minimum(crease, 1) * np.float32(.35), .3)


def carpet(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size)
  loops = np.sin(grid.u * np.float32(rng.uniform(26, 40)) + noise(rng, size, 20)) * np.float32(.5)
  fuzz = noise(rng, size, size / 2) + loops
  second = colour(rng, rng.choice(['black', 'white', 'gray', 'brown', 'beige']))
  fleck = step(np.float32(rng.uniform(.6, 1.4)) - noise(rng, size, size / 3), .5)
  base = tone(paint, fuzz * np.float32(rng.uniform(.08, .15)))
  return scene(lerp(base, second * (1 + fuzz * np.float32(.1))[..., None], fleck * np.float32(.6)),
                fuzz * np.float32(.18))


def mesh(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size, .8)
  pitch = rng.uniform(.16, .3)
  _, _, x, y = cells(grid.u, grid.v, pitch)
  wire = np.minimum(1 - np.abs(x), 1 - np.abs(y))
  inside = step(wire - np.float32(rng.uniform(.18, .32)), grid.pixel * 2 / pitch * 1.5)
  ground = tone(colour(rng, rng.choice(['black', 'gray', 'white', 'beige'])), noise(rng, size, 4, 2) * np.float32(.05))
  base = tone(paint, noise(rng, size, 8) * np.float32(.04))
  return scene(lerp(ground, base, inside), inside * (1 - wire) * np.float32(.5), .4)


def terrazzo(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  field = noise(rng, size, rng.uniform(10, 16), 1)
  other = noise(rng, size, rng.uniform(14, 22), 1)
  base = tone(paint, noise(rng, size, size / 3) * np.float32(.03))
  for source, level in ((field, 1.1), (-field, 1.2), (other, 1.3), (-other, 1.3)):
    chip = colour(rng, rng.choice(['white', 'gray', 'brown', 'black', 'beige', 'orange']))
    base = lerp(base, np.broadcast_to(chip, base.shape), step(np.float32(level) - source, .25))
  return scene(base, np.zeros((size, size)), .2)


def knit(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size, .2)
  f = np.float32(rng.uniform(16, 26))
  lean = np.abs((grid.u * f / np.float32(np.pi)) % 2 - 1)
  stitch = np.sin(grid.v * f * np.float32(1.4) + lean * np.float32(4.5)) * np.sqrt(np.abs(np.sin(grid.u * f)))
  field = stitch * np.float32(rng.uniform(.1, .2)) + noise(rng, size, size / 2) * np.float32(.04)
  albedo = tone(paint, field)
  if rng.random() < .4:
    band = step(np.sin(grid.v * np.float32(rng.uniform(3, 6))), .3)
    albedo = lerp(albedo, colour(rng, 'white') * (1 + field)[..., None], band)
  return scene(albedo, stitch * np.float32(.3))


def shingle(rng: Generator, size: int, paint: np.ndarray) -> Scene:
  grid = view(rng, size, .2)
  pitch = rng.uniform(.4, .65)
  i, j, x, y = cells(grid.u, grid.v, pitch, .6, .5)
  drop = (y + 1) * np.float32(.5)
  gap = step(np.float32(.93) - np.abs(x), grid.pixel * 2 / pitch * 2)
  rough = noise(rng, size, size / 2.5, 2)
  shade = (hashed(i, j, int(rng.integers(1 << 16))) - .5) * np.float32(.4) + (drop - .5) * np.float32(.25)
  field = shade + rough * np.float32(.09) - gap * np.float32(.4) - step(np.float32(.06) - drop, .06) * np.float32(.4)
  return scene(tone(paint, field), drop * np.float32(.3) + rough * np.float32(.1))
