"""What a method reads from a frozen CLIP image tower, as data.

Shape alphabet of the whole project: B batch, N patches, L text tokens, D tower width, H heads, E embedding,
T taps, C categories, S states, R pixels a side, n windows of one size.  Blocks are counted from 1, as in the papers.
"""

from typing import Any, NamedTuple


class SideStream(NamedTuple):
  """A second residual stream beside CLIP's own; it reads CLIP's stream and never feeds back.

  For every block l >= first_block, with h = LN1(x^{l-1}) taken from CLIP's own stream:
    y^l = y^{l-1} + Out(attend(q, k, v, mode))             the accumulating form of DPAM and CLIP Surgery
    y^l = MLPres(x^{l-1} + Out(attend(q, k, v, mode)))     with ffn, for the blocks after first_block

  Attributes:
    name: the stream's name, unique in a FeatureSpec, not 'clip'.
    mode: one of 'qk', 'qq', 'kk', 'vv'.
    first_block: first block (from 1) whose attention this stream collects.
    residual_base: start from x^{first_block - 1}; otherwise from zero.
    reset_every: restart the stream (from zero, or from x^{l-1} with residual_base) every so many blocks,
      counted from first_block; 0 never.
    ffn: the restarting form with CLIP's feed-forward network.
  """
  name: str
  mode: str = 'vv'
  first_block: int = 6
  residual_base: bool = True
  reset_every: int = 0
  ffn: bool = False


class Tap(NamedTuple):
  """One place to read tokens.

  Attributes:
    stream: 'clip' or the name of a SideStream. One read before its first_block is CLIP's own stream.
    block: 1-based block number; a ResNet's blocks are its four stages, each with its own number and width of tokens.
    point: 'block', the block's output; 'attention', the residual stream after its attention, before its MLP. The
      attention pool behind a ResNet's block 4 has three, all after its projection: 'pool', CLIP's own attention asked
      for every token; 'pool_vv', with the values as queries and keys (CLIP Surgery); 'pool_cosine', with the values'
      cosines (CLIP-AD, arXiv 2311.00453, whose class token is 'pool_vv').
    token: 'patches', or 'cls' for the class token in their place.
    read: what follows, one of FeatureSpec.read's values; '' is the FeatureSpec's own.
  """
  stream: str
  block: int
  point: str = 'block'
  token: str = 'patches'
  read: str = ''

  @property
  def name(self) -> str:
    parts = (self.stream, self.block, self.point, *(() if self.token == 'patches' else (self.token,)), self.read)
    return '/'.join(str(part) for part in parts if part)

  def __repr__(self):
    # As with a FeatureSpec: stores are known by this text.
    fields = self._asdict()
    shown = [key for key in fields if key not in Tap._field_defaults or key == 'point' or
             fields[key] != Tap._field_defaults[key]]
    return f'Tap({", ".join(f"{key}={fields[key]!r}" for key in shown)})'


class FeatureSpec(NamedTuple):
  """Everything that decides the encoder's output apart from the weights; equal specs share stored features.

  Attributes:
    image_size: pixels a side of the square input.
    cls: read-out of the class token: 'proj', 'ln_post_proj', or '' for none.
    taps: where to read tokens.
    sides: the side streams that taps name.
    read: what follows a tap that does not say so itself: 'ln_post_proj', 'proj', 'ln_post' or 'none'.
    positions: resampling of the positional table: 'bilinear' (AnomalyCLIP), 'bicubic_antialias' (open_clip),
      'bicubic' (Hugging Face).
    windows: sides, in patches, of the square windows that are encoded by themselves, at every place (WinCLIP).
    crops: pixels a side that the image is resized to for ten crops of image_size (multi-crop prediction); 0 none.
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
    """Returns the FeatureSpec of the crops alone: they are of another image, so they are encoded and stored by themselves."""
    return FeatureSpec(self.image_size, self.cls, positions=self.positions, crops=self.crops)

  def __repr__(self):
    # Stores and checkpoints are known by this text: a field that came later shows only where it says something.
    fields = self._asdict()
    for later in ('windows', 'crops'):
      if not fields[later]:
        del fields[later]
    return f'Spec({", ".join(f"{name}={value!r}" for name, value in fields.items())})'


class Features(NamedTuple):
  """What the encoder returns, never normalised.

  Attributes:
    cls: [B, E] class-token feature, or None where the FeatureSpec reads none.
    taps: {Tap.name: [B, N, E]} patch tokens in row-major order, class token dropped ([B, N, D] without 'proj'), or
      the class token alone, [B, 1, E].
    windows: {side: [B, n, E]} class-token feature of every window alone, after ln_post and the projection, in
      row-major order of its upper left patch.
    crops: [B, 10, E] class-token feature, read as cls is, of five crops (upper left, upper right, lower left, lower
      right, centre), then of their mirror images; None where the FeatureSpec has none.
  """
  cls: Any
  taps: dict[str, Any]
  windows: dict[int, Any] = {}  # noqa: RUF012 (never written)
  crops: Any = None


def check_layers(clip, layers):
  """Raises ValueError unless `layers` are different blocks of the image tower, at least one."""
  blocks, layers = clip.arch.vision.layers, tuple(layers)
  if not layers or len(set(layers)) < len(layers) or not all(1 <= block <= blocks for block in layers):
    raise ValueError(f'layers {layers} are not different blocks in 1..{blocks}, those of {clip.arch.name}')
