"""Invented categories for pretraining: each comes in a few makes, and pieces of a make vary.

With few categories a network would learn what each looks like when flawless. With hundreds of different ones it has to
learn what damage looks like on anything. Nothing here resembles the auxiliary and target categories: no wires in a
jacket, no stitches, no flakes of several colours.
"""

import numpy as np
from numpy.random import Generator

from zsad_jax.data.synthetic import objects, surfaces
from zsad_jax.data.synthetic.canvas import Grid, Scene, box, circle, colour, lerp, noise, part, segment, step

OBJECTS = (
    'bracket', 'buckle', 'badge', 'medal', 'coin', 'knob', 'dial', 'socket', 'hinge', 'lens', 'bead', 'stamp',
    'tag', 'token', 'spool', 'pulley', 'bearing', 'flange', 'gasket', 'valve', 'nozzle', 'handle', 'latch', 'lever',
    'pedal', 'wheel', 'tyre', 'rotor', 'fan', 'vent', 'cork', 'coaster', 'tray', 'saucer', 'bowl', 'spoon', 'comb',
    'ruler', 'magnet', 'fuse', 'relay', 'switch', 'sensor', 'antenna', 'speaker', 'lamp', 'bulb', 'clamp', 'hook',
    'anchor', 'bell', 'whistle', 'card', 'dice', 'tablet', 'mirror', 'clock', 'compass', 'pendant', 'brooch')
SURFACES = (
    'plaster', 'granite', 'slate', 'sandstone', 'linoleum', 'felt', 'denim', 'canvas', 'velvet', 'burlap', 'satin',
    'vinyl', 'rubber', 'cork_board', 'cardboard', 'parchment', 'wallpaper', 'parquet', 'laminate', 'plywood',
    'bamboo', 'wicker', 'asphalt', 'gravel', 'pavement', 'cobble', 'panel', 'sheet', 'foil', 'film', 'plastic',
    'fibreglass', 'tarpaulin', 'gauze', 'lace', 'quilt', 'enamel', 'stucco', 'ribbon', 'grille')
MATERIALS = ('metal', 'plastic', 'wooden', 'ceramic', 'stone', 'rubber', 'paper', 'cotton', 'foam', 'glass')
MAKES = 8
_ACCENTS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'white', 'black', 'silver', 'brown', 'pink', 'cyan')


def _near(rng, value, spread=.1):
  """`value`, varied from piece to piece."""
  return value * rng.uniform(1 - spread, 1 + spread)


def _outline(plan, rng):
  """Distance function (u, v) -> [R, R] of a silhouette within about .85 of the centre."""
  kind, width, height = plan.integers(9), _near(rng, plan.uniform(.55, .85)), _near(rng, plan.uniform(.35, .8))
  corner, count = plan.uniform(.02, .3), int(plan.integers(3, 9))
  wave, turn = plan.uniform(.02, .1), plan.uniform(0, 6.3)
  second = plan.uniform(.15, .4), plan.uniform(.2, .8), plan.uniform(.12, .35)

  def polygon(u, v):
    angle, sector = np.arctan2(v, u) + np.float32(turn), np.float32(2 * np.pi / count)
    return np.hypot(u, v) * np.cos((angle % sector) - sector / 2) - np.float32(width)

  def lobed(u, v):
    return np.hypot(u, v) - np.float32(width) * (1 + np.float32(wave) * np.cos(np.arctan2(v, u) * count * 2))

  def pair(u, v):
    a, b, c = second
    return np.minimum(box(u, v, width, a, min(corner, a)), box(u - np.float32(b * .6), v, c, height, min(corner, c)))

  def mirrored(u, v):
    a, _, c = second
    return np.minimum(box(u, v, width, a, min(corner, a)), circle(np.abs(u) - np.float32(.5), v, c + .1))

  return [lambda u, v: circle(u, v, width), lambda u, v: circle(u, v * np.float32(width / height), width),
          lambda u, v: box(u, v, width, height, min(corner, height)), polygon, lobed, pair, mirrored,
          lambda u, v: segment(u, v, (-width * .6, 0), (width * .6, 0), height * .45),
          lambda u, v: np.abs(u / np.float32(width)) ** 4 + np.abs(v / np.float32(height)) ** 4 - 1][kind]


def _mark(plan, rng, reach):
  """Distance function of a small shape around its own origin, `reach` wide."""
  kind, aspect, f = plan.integers(6), plan.uniform(.3, 1.), plan.uniform(20, 45)
  reach = _near(rng, reach, .06)
  return [lambda u, v: circle(u, v, reach), lambda u, v: box(u, v, reach, reach * aspect, reach * .1),
          lambda u, v: np.abs(circle(u, v, reach * .8)) - np.float32(reach * .25),
          lambda u, v: box(u, v, reach, reach * .18), lambda u, v: np.abs(u) + np.abs(v) - np.float32(reach),
          lambda u, v: np.maximum(box(u, v, reach, reach * .4), np.sin(u * np.float32(f)) * np.float32(.05))][kind]


def _places(plan, rng, u, v):
  """Coordinates (u, v) folded so that one mark appears once, mirrored, in a ring, in a row or in a lattice."""
  kind, away, count = plan.integers(6), plan.uniform(.2, .55), int(plan.integers(3, 10))
  pitch, swap = np.float32(_near(rng, plan.uniform(.25, .45))), plan.random() < .5
  a, b = (v, u) if swap else (u, v)
  if kind == 0:
    return a, b
  if kind == 1:
    return np.abs(a) - np.float32(away), b
  if kind == 2:
    x, y = objects.radial(Grid(u, v, 0.), count, plan.uniform(0, 6))
    return x - np.float32(away), y
  if kind == 3:
    row = np.clip(np.round(a / pitch), -1.5, 1.5)
    return a - row * pitch, b
  if kind == 4:
    return (a + pitch / 2) % pitch - pitch / 2, (b + pitch / 2) % pitch - pitch / 2
  loose = rng.uniform(-.4, .4, 2)  # prints and labels whose place varies from piece to piece
  return a - np.float32(loose[0]), b - np.float32(loose[1] * .6)


def _make(kind: int, surface: bool, rng) -> np.random.Generator:
  """The generator that determines the look of a random make of a category."""
  return np.random.default_rng([kind, surface, int(rng.integers(MAKES))])


def draw_object(kind: int, rng: Generator, size: int, paint: np.ndarray) -> Scene:
  """Returns one flawless object of category `kind`: a silhouette with marks, bands, pins and a texture of its own."""
  plan = _make(kind, False, rng)
  upright = plan.random() < .25
  scene, grid = objects.start(rng, size, .4 if upright else np.pi, low=.68)
  u, v = grid.u, grid.v
  outline = _outline(plan, rng)
  body = outline(u, v)
  for _ in range(int(plan.integers(0, 2))):
    x, y = _places(plan, rng, u, v)
    pins = box(x, y, .9, plan.uniform(.03, .08)) if plan.random() < .4 else np.float32(9)
    pins = np.maximum(pins, np.maximum(np.abs(u), np.abs(v)) - np.float32(.92))
    scene = part(scene, grid, pins, objects.apart(rng, paint, ('silver', 'black', 'yellow')), .3, .04, cover=True)
  scene = part(scene, grid, body, paint, plan.uniform(.2, 1.), plan.uniform(.04, .3), cover=True)
  if plan.random() < .35:
    scene = _banded(plan, rng, scene, grid, body, paint)
  for _ in range(int(plan.integers(0, 4))):
    scene = _marked(plan, rng, scene, grid, body, paint)
  if plan.random() < .3:
    hole = _mark(plan, rng, plan.uniform(.08, .25))(*_places(plan, rng, u, v))
    keep = 1 - step(np.maximum(hole, body + np.float32(.06)), grid.pixel * 1.5)
    if (scene.cover * keep).sum() > .6 * scene.cover.sum():  # a thin piece would nearly vanish
      scene = scene._replace(cover=scene.cover * keep)
  if plan.random() < .25:
    rib = np.sin((u if plan.random() < .5 else np.hypot(u, v)) * np.float32(_near(rng, plan.uniform(14, 40))))
    scene = scene._replace(albedo=scene.albedo * (1 + np.float32(plan.uniform(.04, .12)) * rib)[..., None],
                           height=scene.height + np.float32(plan.uniform(.02, .1)) * rib)
  return objects.rough(rng, scene, plan.uniform(4, 30), plan.uniform(0, .09))


def _banded(plan, rng, scene, grid, body, paint) -> Scene:
  """The scene with one side or a stripe of the body in a second colour."""
  along = grid.u if plan.random() < .5 else grid.v
  at = np.float32(_near(rng, plan.uniform(-.3, .3)))
  edge = at - along if plan.random() < .5 else np.abs(along - at) - np.float32(plan.uniform(.06, .2))
  inside = step(np.maximum(edge, body), grid.pixel * 1.5)
  tone = objects.apart(rng, paint, _ACCENTS)
  return scene._replace(albedo=lerp(scene.albedo, np.broadcast_to(tone, scene.albedo.shape), inside))


def _marked(plan, rng, scene, grid, body, paint) -> Scene:
  """The scene with one kind of mark on the body: printed, raised or recessed."""
  x, y = _places(plan, rng, grid.u, grid.v)
  shape = np.maximum(_mark(plan, rng, plan.uniform(.06, .3))(x, y), body + np.float32(plan.uniform(.03, .12)))
  if plan.random() < .3:
    shape = np.maximum(np.abs(body + np.float32(plan.uniform(.1, .3))) - np.float32(.025), body)
  kind = plan.integers(3)
  tone = objects.apart(rng, paint, _ACCENTS) if kind == 0 else paint * np.float32((.4, 1.)[kind - 1])
  return part(scene, grid, shape, tone, 0. if kind == 0 else plan.choice([-.3, .3]), .04)


def draw_surface(kind: int, rng: Generator, size: int, paint: np.ndarray) -> Scene:
  """Returns one flawless surface of category `kind`: layers of texture, possibly cells with joints or a print."""
  plan = _make(kind, True, rng)
  grid = surfaces.view(rng, size, plan.choice([.2, np.pi]))
  albedo, height = surfaces.tone(paint, np.zeros((size, size), np.float32)), np.zeros((size, size), np.float32)
  if plan.random() < .45:
    albedo, height = _celled(plan, rng, grid, albedo, height)
  for _ in range(int(plan.integers(1, 3))):
    field = _texture(plan, rng, grid, size)
    albedo = albedo * (1 + field * np.float32(_near(rng, plan.uniform(.03, .12), .3)))[..., None]
    height = height + field * np.float32(plan.uniform(0, .2))
  if plan.random() < .35:
    albedo = _printed(plan, rng, grid, albedo)
  return surfaces.scene(albedo, height, float(plan.choice([0., .1, .4])))


def _texture(plan, rng, grid, size):
  """A field [R, R] of about unit amplitude: clouds, fibres, waves, a weave, rings or pores."""
  kind, f, cells = plan.integers(6), np.float32(_near(rng, plan.uniform(10, 40))), plan.uniform(3, 40)
  warp = noise(rng, size, 4) * np.float32(plan.uniform(0, .8))
  if kind == 0:
    return noise(rng, size, cells, int(plan.integers(1, 4)))
  if kind == 1:
    fibre = noise(rng, size, size / plan.uniform(1.5, 4), 1, stretch=plan.uniform(5, 30))
    return np.ascontiguousarray(fibre.T) if plan.random() < .5 else fibre
  if kind == 2:
    return np.sin(grid.u * f + warp)
  if kind == 3:
    return np.sin(grid.u * f + warp) * np.sin(grid.v * f * np.float32(plan.uniform(.5, 1.)) + warp)
  if kind == 4:
    return np.sin(np.hypot(grid.u, grid.v) * f * np.float32(.6) + warp * 2)
  return -np.clip(noise(rng, size, cells) - np.float32(plan.uniform(.8, 1.8)), 0, 1.5)


def _celled(plan, rng, grid, albedo, height):
  """Albedo and height of paving: cells of slightly different tone between joints."""
  u, v = (grid.u, grid.v) if plan.random() < .7 else (grid.u + grid.v * np.float32(.5), grid.v * np.float32(.87))
  pitch, shape, stagger = plan.uniform(.25, .8), plan.uniform(.4, 1.), plan.choice([0., .5, .33])
  i, j, x, y = surfaces.cells(u, v, _near(rng, pitch), shape, stagger)
  joint = np.float32(plan.uniform(.04, .14))
  near = np.hypot(x, y) - 1 if plan.random() < .25 else np.maximum(np.abs(x), np.abs(y)) - (1 - joint)
  inside = step(near, grid.pixel * 3 / pitch)
  spread = plan.uniform(0, .35)
  shade = (surfaces.hashed(i, j, int(rng.integers(1 << 16))) - .5) * np.float32(spread)
  base = albedo * (1 + shade)[..., None]
  if plan.random() < .4:
    second = colour(rng, rng.choice(_ACCENTS))
    base = lerp(base, np.broadcast_to(second, base.shape), (i + j * int(plan.integers(1, 3))) % 2)
  between = colour(rng, rng.choice(('gray', 'black', 'white', 'beige')))
  return lerp(np.broadcast_to(between, base.shape), base, inside), height + inside * np.float32(plan.uniform(0, .4))


def _printed(plan, rng, grid, albedo):
  """Albedo with stripes or a lattice of marks in a second colour."""
  ink = np.broadcast_to(colour(rng, rng.choice(_ACCENTS)), albedo.shape)
  pitch = _near(rng, plan.uniform(.18, .5))
  if plan.random() < .4:
    wave = np.cos(grid.u * np.float32(2 * np.pi / pitch))
    return lerp(albedo, ink, step(wave - np.float32(plan.uniform(-.6, .4)), .3))
  _, _, x, y = surfaces.cells(grid.u, grid.v, pitch, 1., plan.choice([0., .5]))
  return lerp(albedo, ink, step(_mark(plan, rng, plan.uniform(.3, .8))(x, y), grid.pixel * 2 / pitch * 1.5))
