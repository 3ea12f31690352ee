"""Attention that can be read another way: any two of q, k, v may form the map."""

import jax
import jax.numpy as jnp

MODES = ('qk', 'qq', 'kk', 'vv')


def attend(q, k, v, mode='qk', mask=None):
  """Returns softmax(a b^T / sqrt d) v with (a, b) named by `mode`, [B, N, H, d].

  Args:
    q, k, v: [B, N, H, d].
    mode: 'qk' is CLIP's own attention, 'vv' DPAM's (AnomalyCLIP, arXiv 2310.18961, sec. 3.3); also 'qq', 'kk'.
    mask: [N, N] bool, True where a query (row) may read a key (column); None reads all.

  Raises:
    ValueError: an unknown mode.
  """
  if mode not in MODES:
    raise ValueError(f'attention mode {mode!r} is not one of {MODES}')
  read = dict(q=q, k=k, v=v)
  a, b = read[mode[0]], read[mode[1]]
  scores = jnp.einsum('bnhd,bmhd->bhnm', a * a.shape[-1] ** -0.5, b, preferred_element_type=jnp.float32)
  if mask is not None:
    scores = jnp.where(mask[None, None], scores, -jnp.inf)
  return jnp.einsum('bhnm,bmhd->bnhd', jax.nn.softmax(scores, -1).astype(v.dtype), v)
