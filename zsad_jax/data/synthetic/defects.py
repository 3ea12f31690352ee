"""Defects: each function damages a flawless scene, (rng, scene, strength) -> Scene, `strength` in about 0.4 to 1.

Pretraining: crack, scratch, hole, stain, chip, bend, discolour, particle, dent, corrosion, smear, wear, growth.
Auxiliary: crack, scratch, hole, stain, chip, bend, burn, blister, particle.
Target: crack, scratch, hole, stain, chip, bend, discolour, and thread, swap and glue, which no other group has.
"""

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter
from scipy import ndimage

from zsad_jax.data.synthetic import canvas
from zsad_jax.data.synthetic.canvas import Scene, blob, box, circle, colour, lerp, noise, polyline, pose, step


def _spot(rng: Generator, scene: Scene, edge: bool = False) -> np.ndarray:
  """A random point (x, y) on the object, or on its outline if `edge`."""
  cover = np.asarray(Image.fromarray(scene.cover).resize((28, 28), Image.Resampling.BOX))
  allowed = (cover > .25) & (cover < .75) if edge else cover > .8
  allowed = allowed if allowed.any() else cover >= min(.3, cover.max())
  rows, columns = np.nonzero(allowed)
  k = rng.integers(len(rows))
  at = (np.array([columns[k], rows[k]]) + .5) / 14 - 1
  return at if edge else np.clip(at, -.82, .82)


def _contrast(rng: Generator, scene: Scene, at: np.ndarray, strength: float, dark: float = .5) -> np.ndarray:
  """A colour [3] that stands out from the scene at a point by about `strength`."""
  size = scene.cover.shape[0]
  x, y = np.clip(((np.asarray(at) + 1) / 2 * size).astype(int), 0, size - 1)
  local = scene.albedo[max(y - 2, 0):y + 3, max(x - 2, 0):x + 3].mean((0, 1))
  up = local.mean() < .3 or (local.mean() < .65 and rng.random() > dark)
  return np.clip(local + (1 if up else -1) * np.float32(.2 + .4 * strength), .02, .98)


def _walk(rng: Generator, start: np.ndarray, length: float, joints: int, turn: float) -> list[tuple[float, float]]:
  """Points of a random walk of `length` with steps that turn by about `turn` radians."""
  points, angle = [tuple(start)], rng.uniform(0, 2 * np.pi)
  for _ in range(joints):
    angle += rng.normal(0, turn)
    x, y = points[-1]
    points.append((x + np.cos(angle) * length / joints, y + np.sin(angle) * length / joints))
  return points


def _overlay(scene: Scene, tone: np.ndarray, alpha: np.ndarray, lift: float = 0.) -> Scene:
  """Scene painted in `tone` with opacity `alpha` [R, R], raised by `lift`."""
  alpha = alpha * (scene.cover > .5)
  albedo = lerp(scene.albedo, np.broadcast_to(np.asarray(tone, np.float32), scene.albedo.shape), alpha)
  return scene._replace(albedo=albedo, height=scene.height + np.float32(lift) * alpha)


def crack(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  grid, joints = pose(size), int(rng.integers(5, 9))
  points = _walk(rng, at, rng.uniform(.4, 1.1), joints, .6)
  width = rng.uniform(.012, .03) * np.linspace(1, .4, joints)
  distance = polyline(grid.u, grid.v, points, width)
  if rng.random() < .5:
    branch = _walk(rng, points[2], rng.uniform(.2, .5), 3, .5)
    distance = np.minimum(distance, polyline(grid.u, grid.v, branch, .01))
  tone = scene.albedo * np.float32(.55 - .45 * strength)
  return _overlay(scene, tone, step(distance, grid.pixel * 1.3), -.25 * strength)


def scratch(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  grid, angle = pose(size), rng.uniform(0, np.pi)
  tone = _contrast(rng, scene, at, strength, .3)
  distance = np.full((size, size), 9., np.float32)
  for _ in range(int(rng.integers(1, 4))):
    start = at + rng.uniform(-.12, .12, 2)
    turn, length = angle + rng.normal(0, .12), rng.uniform(.15, .45)
    reach = np.array([np.cos(turn), np.sin(turn)]) * length
    bow = start + np.array([-reach[1], reach[0]]) * rng.uniform(-.2, .2)
    line = polyline(grid.u, grid.v, [start - reach, bow, start + reach], rng.uniform(.004, .014))
    distance = np.minimum(distance, line)
  return _overlay(scene, tone, step(distance, grid.pixel * 1.4) * np.float32(.5 + .5 * strength), -.15)


def hole(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  grid = pose(size)
  distance = blob(rng, grid, at, rng.uniform(.06, .17), .2)
  deep = scene.albedo.mean((0, 1)) * np.float32(.3 * (1 - strength)) + np.float32(.02)
  inside = step(distance, grid.pixel * 1.5) * (scene.cover > .5)
  rim = np.clip(1 - np.abs(distance) / np.float32(.05), 0, 1)
  scene = _overlay(scene, deep, inside * np.float32(.6 + .4 * strength))
  return scene._replace(height=scene.height - inside * np.float32(.5) + rim * (scene.cover > .5) * np.float32(.15))


def stain(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  grid = pose(size)
  distance = blob(rng, grid, at, rng.uniform(.12, .3), .5) + noise(rng, size, 9, 2) * np.float32(.03)
  if rng.random() < .3:
    tone = colour(rng, rng.choice(['red', 'green', 'blue', 'yellow', 'purple', 'brown']))
  else:
    tone = _contrast(rng, scene, at, strength, .8)
  alpha = step(distance, rng.choice([.03, .08, .15])) * np.float32(.35 + .5 * strength)
  return _overlay(scene, tone, alpha)


def chip(rng: Generator, scene: Scene, strength: float) -> Scene:
  """A piece broken off: from the outline of an object, or a flake from a surface."""
  size, grid = scene.cover.shape[0], pose(scene.cover.shape[0])
  if scene.cover.min() > .5:
    at = _spot(rng, scene)
    distance = blob(rng, grid, at, rng.uniform(.12, .24), .5) + noise(rng, size, 14) * np.float32(.02)
    rough = noise(rng, size, size / 3) * np.float32(.08)
    tone = _contrast(rng, scene, at, strength) * (1 + rough)[..., None]
    inside = step(distance, grid.pixel * 1.5)
    return _overlay(scene, tone, inside * np.float32(.6 + .4 * strength), -.6)
  at = _spot(rng, scene, edge=True)
  distance = blob(rng, grid, at, rng.uniform(.14, .2 + .12 * strength), .4)
  left = 1 - step(distance, grid.pixel * 1.5)
  slope = np.clip(distance / np.float32(.06), 0, 1)
  lost = np.clip(1 - slope, 0, 1) * np.float32(.3)
  return scene._replace(cover=scene.cover * left, height=scene.height - lost)


def bend(rng: Generator, scene: Scene, strength: float) -> Scene:
  """Part of the scene pushed aside: coordinates are displaced within a soft disc."""
  size, at = scene.cover.shape[0], _spot(rng, scene, edge=scene.cover.min() < .5)
  grid = pose(size)
  radius, turn = rng.uniform(.3, .5), rng.uniform(0, 2 * np.pi)
  square = (grid.u - np.float32(at[0])) ** 2 + (grid.v - np.float32(at[1])) ** 2
  bell = np.clip(1 - square / np.float32(radius ** 2), 0, 1) ** 2
  push = np.float32(size * radius * (.25 + .25 * strength)) * bell
  rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
  sources = [rows + push * np.float32(np.sin(turn)), columns + push * np.float32(np.cos(turn))]
  layers = np.concatenate([scene.albedo, scene.height[..., None], scene.cover[..., None]], -1)
  moved = np.stack([ndimage.map_coordinates(layers[..., k], sources, order=1, mode='nearest') for k in range(5)], -1)
  keep = (bell > 0)[..., None]
  layers = np.where(keep, moved, layers).astype(np.float32)
  return scene._replace(albedo=layers[..., :3], height=layers[..., 3], cover=layers[..., 4])


def discolour(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  grid = pose(size, rng.uniform(0, np.pi), 1., at)
  if rng.random() < .5:
    distance = box(grid.u, grid.v, rng.uniform(.15, .4), rng.uniform(.12, .3), .05)
  else:
    distance = circle(grid.u, grid.v * np.float32(rng.uniform(1, 1.8)), rng.uniform(.18, .35))
  if rng.random() < .5:
    gain = np.exp(rng.choice([-1, 1]) * rng.uniform(.3, .4 + .4 * strength)) * np.ones(3)
  else:
    gain = np.exp(rng.normal(0, .3 + .3 * strength, 3))
  tone = np.clip(scene.albedo * gain.astype(np.float32), 0, 1)
  return _overlay(scene, tone, step(distance, rng.choice([.04, .12])))


def particle(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  tone = colour(rng, rng.choice(list(canvas.COLOURS))) if rng.random() < .4 else _contrast(rng, scene, at, strength)
  for _ in range(int(rng.integers(1, 5))):
    grid = pose(size, rng.uniform(0, np.pi), 1., at + rng.normal(0, .09, 2))
    distance = box(grid.u, grid.v, rng.uniform(.025, .08), rng.uniform(.02, .06), rng.uniform(0, .02))
    scene = _overlay(scene, tone, step(distance, grid.pixel * 1.3) * np.float32(.6 + .4 * strength), .4)
  return scene


def dent(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  grid = pose(size, rng.uniform(0, np.pi), 1., at)
  r = np.hypot(grid.u, grid.v * np.float32(rng.uniform(1, 1.8))) / np.float32(rng.uniform(.12, .26))
  bowl = np.clip(1 - r * r, 0, 1) ** 2 * (scene.cover > .5)
  sign = rng.choice([-1, 1])
  albedo = scene.albedo * (1 - np.float32(.3 * strength) * bowl)[..., None]
  return scene._replace(albedo=albedo, height=scene.height + np.float32(sign * (1.2 + 1.8 * strength)) * bowl)


def corrosion(rng: Generator, scene: Scene, strength: float) -> Scene:
  """Speckles that crowd around a point."""
  size, at = scene.cover.shape[0], _spot(rng, scene)
  distance = blob(rng, pose(size), at, rng.uniform(.18, .35), .4)
  crowd = np.clip(.3 - distance / np.float32(.2), 0, 1.3)
  speckle = noise(rng, size, rng.uniform(14, 40), 2)
  tone = colour(rng, rng.choice(['brown', 'orange', 'green', 'black', 'white']))
  inside = step(np.float32(1.1) - speckle - crowd * np.float32(1.6), .5) * (crowd > 0)
  tone = tone * (1 + speckle * np.float32(.15))[..., None]
  return _overlay(scene, tone, inside * np.float32(.5 + .5 * strength), -.15)


def smear(rng: Generator, scene: Scene, strength: float) -> Scene:
  """A patch blurred along one direction and slightly tinted."""
  size, at = scene.cover.shape[0], _spot(rng, scene)
  inside = step(blob(rng, pose(size), at, rng.uniform(.16, .3), .4), .06) * (scene.cover > .5)
  turn, reach = rng.uniform(0, np.pi), size * rng.uniform(.04, .08)
  along = np.array([np.sin(turn), np.cos(turn), 0]) * reach
  copies = [ndimage.shift(scene.albedo, along * t, order=1, mode='nearest') for t in (-1, -.5, 0, .5, 1)]
  tint = 1 + rng.normal(0, .12, 3).astype(np.float32) * np.float32(strength)
  soft = np.clip(np.mean(copies, 0) * tint, 0, 1)
  scene = _overlay(scene, soft, inside)
  return scene._replace(height=scene.height * (1 - inside * np.float32(.8)))


def wear(rng: Generator, scene: Scene, strength: float) -> Scene:
  """A patch rubbed flat: its colours fade into one, its relief vanishes."""
  size, at = scene.cover.shape[0], _spot(rng, scene)
  distance = blob(rng, pose(size), at, rng.uniform(.16, .34), .4) + noise(rng, size, 12, 2) * np.float32(.04)
  inside = step(distance, .1) * (scene.cover > .5)
  local = (scene.albedo * inside[..., None]).sum((0, 1)) / max(float(inside.sum()), 1.)
  pale = np.clip(local * np.float32(rng.choice([.75, 1., 1.25])), .03, .97)
  scene = _overlay(scene, pale, inside * np.float32(.5 + .5 * strength))
  return scene._replace(height=scene.height * (1 - inside))


def growth(rng: Generator, scene: Scene, strength: float) -> Scene:
  """An irregular patch of foreign matter with a texture of its own."""
  size, at = scene.cover.shape[0], _spot(rng, scene)
  distance = blob(rng, pose(size), at, rng.uniform(.12, .26), .5) + noise(rng, size, 7, 3) * np.float32(.06)
  texture = noise(rng, size, rng.uniform(6, 50), int(rng.integers(1, 3)))
  one, other = colour(rng, rng.choice(list(canvas.COLOURS))), _contrast(rng, scene, at, strength)
  tone = one + (other - one) * np.clip(texture * np.float32(.35) + .5, 0, 1)[..., None]
  inside = step(distance, rng.choice([.02, .06]))
  return _overlay(scene, tone, inside * np.float32(.55 + .45 * strength), rng.choice([0., .4]))


def burn(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  distance = blob(rng, pose(size), at, rng.uniform(.14, .28), .4) + noise(rng, size, 16, 2) * np.float32(.03)
  scene = _overlay(scene, scene.albedo * np.float32([.6, .45, .3]), step(distance - np.float32(.05), .18))
  return _overlay(scene, [.05, .04, .03], step(distance + np.float32(.06), .14) * np.float32(.4 + .5 * strength))


def blister(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  for _ in range(int(rng.integers(2, 7))):
    grid = pose(size, 0., 1., at + rng.normal(0, .13, 2))
    r = np.hypot(grid.u, grid.v) / np.float32(rng.uniform(.04, .1))
    dome = np.sqrt(np.clip(1 - r * r, 0, 1)) * (scene.cover > .5)
    pale = np.clip(scene.albedo * np.float32(1.35), 0, 1)
    scene = scene._replace(albedo=lerp(scene.albedo, pale, dome * np.float32(strength)),
                           height=scene.height + np.float32(.6 + .8 * strength) * dome)
  return scene


def thread(rng: Generator, scene: Scene, strength: float) -> Scene:
  size, at = scene.cover.shape[0], _spot(rng, scene)
  grid = pose(size)
  points = _walk(rng, at, rng.uniform(.6, 1.3), 9, .45)
  distance = polyline(grid.u, grid.v, points, rng.uniform(.008, .02))
  tone = _contrast(rng, scene, at, .5 + .5 * strength, .3)
  if rng.random() < .5:
    tone = tone * .4 + colour(rng, rng.choice(['red', 'blue', 'yellow', 'white', 'green'])) * .6
  return _overlay(scene, tone, step(distance, grid.pixel * 1.3), .3)


def swap(rng: Generator, scene: Scene, strength: float) -> Scene:
  """A square of the scene, rotated and put in the wrong place."""
  size = scene.cover.shape[0]
  side = int(size * rng.uniform(.16, .22 + .1 * strength))
  centres = []
  for _ in range(2):
    x, y = ((_spot(rng, scene) + 1) / 2 * size - side / 2).astype(int)
    centres.append((int(np.clip(y, 0, size - side)), int(np.clip(x, 0, size - side))))
  (y0, x0), (y1, x1) = centres
  turns = int(rng.integers(1, 4))
  albedo, height = scene.albedo.copy(), scene.height.copy()
  albedo[y1:y1 + side, x1:x1 + side] = np.rot90(scene.albedo[y0:y0 + side, x0:x0 + side], turns)
  height[y1:y1 + side, x1:x1 + side] = np.rot90(scene.height[y0:y0 + side, x0:x0 + side], turns)
  return scene._replace(albedo=albedo, height=height)


def glue(rng: Generator, scene: Scene, strength: float) -> Scene:
  """A clear glossy drop: the scene below is brightened and blurred, with a highlight on its edge."""
  size, at = scene.cover.shape[0], _spot(rng, scene)
  distance = blob(rng, pose(size), at, rng.uniform(.13, .25), .45)
  on = scene.cover > .5
  alpha = step(distance, .04) * on
  soft = Image.fromarray((np.clip(scene.albedo, 0, 1) * 255).astype(np.uint8)).filter(
      ImageFilter.GaussianBlur(size * .03))
  clear = lerp(np.asarray(soft, np.float32) / 255, np.float32([.85, .83, .75]), np.float32(.25 + .3 * strength))
  rim = np.clip(1 - np.abs(distance + np.float32(.04)) / np.float32(.035), 0, 1) * on
  scene = _overlay(scene, clear, alpha)
  scene = _overlay(scene, [.97, .97, .95], rim * np.float32(.3 + .4 * strength))
  return scene._replace(height=scene.height + np.clip(-distance / np.float32(.1), 0, 1) * on * np.float32(1.2))
