"""Medical data sets."""

from zsad_jax.data.catalog.entry import Entry

ENTRIES: dict[str, Entry] = {}
