"""Features that a method reads from a frozen CLIP image tower, described as data.

Shape alphabet of the whole project: B batch, N patches, L text tokens, D tower width, H heads, d head width,
E embedding, T taps, C categories, S states, R pixels per side, G patches per side, n windows of one size. Blocks are
counted from 1, as in the papers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple


class SideStream(NamedTuple):
  """A second residual stream next to CLIP's own. It reads CLIP's stream and never feeds back into it.

  For every block l >= first_block, with q, k, v from LN1(x^{l-1}) of CLIP's own stream:
    y^l = y^{l-1} + Out(attend(q, k, v, mode))             the accumulating form of DPAM and CLIP Surgery
    y^l = MLPres(x^{l-1} + Out(attend(q, k, v, mode)))     with ffn, for the blocks after first_block

  Attributes:
    name: name of the stream, unique in a FeatureSpec and not 'clip'.
    mode: attention mode, one of 'qk', 'qq', 'kk', 'vv'.
    first_block: first block whose attention this stream collects.
    residual_base: whether the stream starts from x^{first_block - 1}; otherwise it starts from zero.
    reset_every: number of blocks after which the stream restarts (from zero, or from x^{l-1} with residual_base),
      counted from first_block; 0 means never.
    ffn: whether to use the restarting form with CLIP's feed-forward network.
  """
  name: str
  mode: str = 'vv'
  first_block: int = 6
  residual_base: bool = True
  reset_every: int = 0
  ffn: bool = False


class Tap(NamedTuple):
  """A place in the image tower where tokens are read.

  Attributes:
    stream: 'clip' or the name of a SideStream. Before its first_block, a SideStream equals CLIP's own stream.
    block: block number, from 1. The blocks of a ResNet are its four stages, each with its own grid and width.
    point: 'block', the block's output; or 'attention', the residual stream after its attention, before its MLP. The
      attention pool after block 4 of a ResNet has three points, all after its projection: 'pool', CLIP's own
      attention with every token as a query; 'pool_vv', with the values as queries and keys (CLIP Surgery);
      'pool_cosine', with cosines between the values (CLIP-AD, arXiv 2311.00453, whose class token is 'pool_vv').
    token: 'patches', or 'cls' for the class token instead.
    read: read-out, one of the values of FeatureSpec.read; '' takes FeatureSpec.read.
  """
  stream: str
  block: int
  point: str = 'block'
  token: str = 'patches'
  read: str = ''

  @property
  def name(self) -> str:
    """Key of this tap in Features.taps, such as 'vv/24/block'."""
    parts = (self.stream, self.block, self.point, '' if self.token == 'patches' else self.token, self.read)
    return '/'.join(str(part) for part in parts if part)


class FeatureSpec(NamedTuple):
  """Everything besides the weights that decides the encoder's output. Equal specs share stored features.

  Attributes:
    image_size: pixels per side of the square input.
    cls: read-out of the class token: 'proj', 'ln_post_proj', or '' for none.
    taps: places where tokens are read.
    sides: side streams that the taps name.
    read: read-out of taps that do not set their own: 'ln_post_proj', 'proj', 'ln_post' or 'none'.
    positions: resampling of the positional table: 'bilinear' (AnomalyCLIP), 'bicubic_antialias' (open_clip),
      'bicubic' (Hugging Face).
    windows: sides, in patches, of the square windows that are encoded on their own, at every place (WinCLIP).
    crops: pixels per side to which the image is resized before ten crops of image_size are cut from it
      (multi-crop prediction); 0 means no crops.
  """
  image_size: int
  cls: str = 'proj'
  taps: tuple[Tap, ...] = ()
  sides: tuple[SideStream, ...] = ()
  read: str = 'ln_post_proj'
  positions: str = 'bilinear'
  windows: tuple[int, ...] = ()
  crops: int = 0

  def of_crops(self) -> 'FeatureSpec':
    """Returns the spec of the crops alone. They come from another image, so they are encoded and stored separately."""
    return FeatureSpec(self.image_size, self.cls, positions=self.positions, crops=self.crops)


class Features(NamedTuple):
  """Output of the encoder, not normalised.

  Attributes:
    cls: class-token feature [B, E], or None if the spec reads none.
    taps: {Tap.name: [B, N, E]} patch tokens in row-major order without the class token ([B, N, D] without 'proj'),
      or the class token alone, [B, 1, E].
    windows: {side: [B, n, E]} class-token feature of each window on its own, after ln_post and the projection, in
      row-major order of its upper left patch.
    crops: [B, 10, E] class-token feature, read as cls is, of five crops (upper left, upper right, lower left, lower
      right, centre), then of their mirror images; None if the spec has no crops.
  """
  cls: Any
  taps: dict[str, Any]
  windows: dict[int, Any] = {}  # noqa: RUF012  (never written)
  crops: Any = None


def check_layers(clip: Any, layers: Sequence[int]) -> None:
  """Raises ValueError unless `layers` are different blocks of the image tower of `clip`, at least one."""
  blocks, layers = clip.arch.vision.layers, tuple(layers)
  if not layers or len(set(layers)) < len(layers) or not all(1 <= block <= blocks for block in layers):
    raise ValueError(f'layers must be unique block indices in [1, {blocks}]; got {layers}')
