"""Drawing primitives: scenes of albedo, height and cover on a square grid, distance functions, noise and light.

Lengths are in units of half the image side, so one description can be drawn at any resolution.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

Point = Sequence[float]  # (x, y)

COLOURS = {
    'red': (.72, .16, .14), 'orange': (.85, .48, .16), 'yellow': (.86, .76, .25), 'green': (.25, .52, .24),
    'cyan': (.25, .62, .66), 'blue': (.18, .33, .68), 'purple': (.46, .26, .58), 'pink': (.84, .52, .60),
    'brown': (.45, .29, .17), 'beige': (.78, .69, .54), 'white': (.88, .88, .86), 'silver': (.68, .69, .71),
    'gray': (.46, .46, .47), 'black': (.14, .14, .15),
}


class Scene(NamedTuple):
  """A drawing before light and camera.

  Attributes:
    albedo: [R, R, 3] float32 reflectance in 0..1 of the object or surface.
    height: [R, R] float32 relief; its slope shades the scene.
    cover: [R, R] float32 in 0..1, 1 where the object covers the ground; all ones for a surface.
    ground: [R, R, 3] float32 reflectance of the background.
    gloss: strength of the highlight.
  """
  albedo: np.ndarray
  height: np.ndarray
  cover: np.ndarray
  ground: np.ndarray
  gloss: float = 0.


class Grid(NamedTuple):
  """Coordinates of the pixel centres in a posed frame.

  Attributes:
    u, v: [R, R] float32, right and down in the frame of the object.
    pixel: side of one pixel in these units.
  """
  u: np.ndarray
  v: np.ndarray
  pixel: float

  @property
  def size(self) -> int:
    """Pixels per side."""
    return self.u.shape[0]


def pose(size: int, angle: float = 0., scale: float = 1., shift: Sequence[float] = (0., 0.)) -> Grid:
  """Returns a grid of `size` pixels per side for an object rotated by `angle` (radians), scaled and shifted."""
  line = (np.arange(size, dtype=np.float32) * 2 + 1) / size - 1
  x, y = line[None, :] - np.float32(shift[0]), line[:, None] - np.float32(shift[1])
  c, s = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
  return Grid(x * c + y * s, y * c - x * s, 2 / size / scale)


def noise(rng: Generator, size: int, cells: float, octaves: int = 1, stretch: float = 1.) -> np.ndarray:
  """Returns a smooth random field [size, size] float32, about unit variance, `cells` bumps per side, stretched down."""
  total, weight, norm = np.zeros((size, size), np.float32), 1., 0.
  for _ in range(octaves):
    across = int(np.clip(round(cells), 2, size))
    down = int(np.clip(round(cells / stretch), 2, size))
    field = rng.standard_normal((down, across), dtype=np.float32)
    total += weight * np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))
    norm += weight ** 2
    weight, cells = weight * .6, cells * 2.1
  return total * np.float32(1.35 / np.sqrt(norm))


def colour(rng: Generator, name: str, spread: float = .05) -> np.ndarray:
  """Returns a reflectance [3] float32 near the named colour."""
  return np.clip(np.float32(COLOURS[name]) + rng.normal(0, spread, 3), .03, .97).astype(np.float32)


def step(distance: np.ndarray, soft: float) -> np.ndarray:
  """Returns 1 inside (distance < 0) and 0 outside, with an edge of width `soft`."""
  return np.clip(.5 - distance / np.float32(soft), 0, 1)


def lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
  """Returns a for t = 0 and b for t = 1; t [R, R] is broadcast over colour channels."""
  return a + (b - a) * (t[..., None] if np.ndim(a) == 3 and np.ndim(t) == 2 else t)


def circle(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
  """Returns the signed distance to a circle around the origin."""
  return np.hypot(u, v) - np.float32(radius)


def box(u: np.ndarray, v: np.ndarray, width: float, height: float, corner: float = 0.) -> np.ndarray:
  """Returns the signed distance to a box with half sides `width`, `height` and rounded corners."""
  a, b = np.abs(u) - np.float32(width - corner), np.abs(v) - np.float32(height - corner)
  return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - np.float32(corner)


def segment(u: np.ndarray, v: np.ndarray, start: Point, end: Point, radius: float) -> np.ndarray:
  """Returns the signed distance to a thick line between two points."""
  du, dv = end[0] - start[0], end[1] - start[1]
  t = np.clip(((u - start[0]) * du + (v - start[1]) * dv) / max(du * du + dv * dv, 1e-6), 0, 1).astype(np.float32)
  return np.hypot(u - np.float32(start[0]) - t * np.float32(du), v - np.float32(start[1]) - t * np.float32(dv)
                  ) - np.float32(radius)


def polyline(u: np.ndarray, v: np.ndarray, points: Sequence[Point], radius: float | np.ndarray) -> np.ndarray:
  """Returns the signed distance to a thick broken line; `radius` is a number, or one for each segment."""
  radii = np.broadcast_to(radius, len(points) - 1)
  distance = segment(u, v, points[0], points[1], radii[0])
  for start, end, r in zip(points[1:-1], points[2:], radii[1:]):
    distance = np.minimum(distance, segment(u, v, start, end, r))
  return distance


def blob(rng: Generator, grid: Grid, centre: Point, radius: float, rough: float = .35) -> np.ndarray:
  """Returns the signed distance to an irregular patch around `centre`."""
  u, v = grid.u - np.float32(centre[0]), grid.v - np.float32(centre[1])
  angle = np.arctan2(v, u)
  edge = np.full(u.shape, radius, np.float32)
  for k in range(2, 6):
    edge += np.float32(radius * rough * rng.normal() / k) * np.cos(k * angle + np.float32(rng.uniform(0, 6.3)))
  return np.hypot(u, v * np.float32(rng.uniform(1, 1.6))) - np.maximum(edge, np.float32(radius * .4))


def part(scene: Scene, grid: Grid, distance: np.ndarray, paint: np.ndarray, lift: float = 0., bevel: float = .06,
         cover: bool = False) -> Scene:
  """Returns the scene with a shape on top, in colour `paint`, raised by `lift` with a bevelled edge.

  Args:
    scene: the scene below.
    grid: its coordinates.
    distance: [R, R] signed distance to the shape.
    paint: [3] or [R, R, 3] reflectance.
    lift: height of the shape; negative for a recess.
    bevel: width of its sloping edge.
    cover: whether the shape extends the object's outline; otherwise it is visible only on the object.
  """
  inside = step(distance, grid.pixel * 1.5)
  albedo = lerp(scene.albedo, np.broadcast_to(paint, scene.albedo.shape), inside)
  rise = np.clip(-distance / np.float32(bevel), 0, 1) if lift else 0.
  height = scene.height + np.float32(lift) * rise
  return scene._replace(albedo=albedo, height=height,
                        cover=np.maximum(scene.cover, inside) if cover else scene.cover)


class Light(NamedTuple):
  """Light and camera of one photograph.

  Attributes:
    slope: (x, y) light direction, scaled by its strength.
    field: [R, R, 3] float32 illumination.
    shadow: darkness of the object's cast shadow.
    blur: radius of the lens blur, in pixels.
    grain: [R, R, 1 or 3] float32 sensor noise.
  """
  slope: tuple[float, float]
  field: np.ndarray
  shadow: float
  blur: float
  grain: np.ndarray


def light(rng: Generator, scene: Scene) -> Light:
  """Returns random light and camera: direction, uneven illumination, colour cast, exposure, shadow, blur and noise."""
  size = scene.height.shape[0]
  turn, strength = rng.uniform(0, 2 * np.pi), rng.uniform(.35, 1.)
  grid = pose(size)
  field = 1 + np.float32(rng.uniform(-.18, .18)) * grid.u + np.float32(rng.uniform(-.18, .18)) * grid.v
  field = field - np.float32(rng.uniform(0, .15)) * (grid.u ** 2 + grid.v ** 2)
  # Exposure compensates part of the image's mean: dark objects stay darker but do not drown in noise.
  mean = float(lerp(scene.ground, scene.albedo, scene.cover).mean())
  gain = np.float32(np.clip((rng.uniform(.35, .6) / mean) ** .7, .7, 2.) * (1 + rng.normal(0, .03, 3)))
  channels = 3 if rng.random() < .5 else 1
  grain = rng.standard_normal((size, size, channels), dtype=np.float32) * np.float32(rng.uniform(.004, .03))
  return Light((np.cos(turn) * strength, np.sin(turn) * strength), field[..., None] * gain, rng.uniform(0, .5),
               float(rng.choice([0., 0., .5, .8])) * size / 112, grain)


def develop(scene: Scene, lamp: Light) -> np.ndarray:
  """Returns the image [R, R, 3] float32 in [0, 1] of the scene under `lamp`, without its sensor noise."""
  size, h = scene.height.shape[0], scene.height
  sx, sy = (np.float32(s * size / 112) for s in lamp.slope)
  relief = np.zeros_like(h)
  relief[:, 1:] += sx * (h[:, 1:] - h[:, :-1])
  relief[1:] += sy * (h[1:] - h[:-1])
  relief = np.clip(relief * np.float32(3), -.6, .6)
  shaded = scene.albedo * (1 + relief)[..., None]
  if scene.gloss:
    shaded = shaded + (np.float32(scene.gloss) * np.maximum(relief - np.float32(.15), 0))[..., None]
  dx, dy = (round(-np.sign(s) * size * .03) for s in lamp.slope)
  shadow = np.roll(scene.cover, (dy, dx), (0, 1)) * np.float32(lamp.shadow)
  image = lerp(scene.ground * (1 - shadow)[..., None], shaded, scene.cover) * lamp.field
  image = np.clip(image, 0, 1)
  if lamp.blur:
    soft = Image.fromarray((image * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(lamp.blur))
    image = np.asarray(soft, np.float32) * np.float32(1 / 255)
  return image


def expose(image: np.ndarray, lamp: Light) -> np.ndarray:
  """Returns the image [R, R, 3] uint8 with the sensor noise of `lamp`."""
  return (np.clip(image + lamp.grain, 0, 1) * 255 + .5).astype(np.uint8)
