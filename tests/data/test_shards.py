import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from zsad_jax.data import shards
from zsad_jax.data.inventory import Item


def items(tmp_path, sizes):
  created = []
  for i, size in enumerate(sizes):
    path = tmp_path / f'{i}.png'
    path.write_bytes(b'x' * size)
    created.append(Item('part', 'test', 'good', str(i), path, None, 0))
  return created


@pytest.mark.parametrize(('sizes', 'runs'), [
  ([], []), ([0, 0, 0], [3]), ([4, 5, 1, 9, 1], [3, 2]), ([10, 10], [1, 1]), ([99, 1, 99], [1, 2]),
  ([9, 99, 1], [2, 1])])
def test_a_shard_ends_with_the_image_that_fills_it(tmp_path, monkeypatch, sizes, runs):
  monkeypatch.setattr(shards, 'SHARD_BYTES', 10)
  all_items = items(tmp_path, sizes)
  divided = shards.divide(all_items)
  assert [len(run) for run in divided] == runs and [item for run in divided for item in run] == all_items


def serialized(names):
  """A record with its fields in this order: concatenated messages are merged when they are read."""
  data = b''
  for name in names:
    field = tf_example_pb2.Example()
    field.features.feature[name].bytes_list.value.append(name.encode())
    data += field.SerializeToString()
  return data


def test_records_do_not_depend_on_protobufs_field_order(tmp_path):
  written = []
  for order in (('id', 'image', 'mask'), ('mask', 'id', 'image')):
    path = tmp_path / order[0] / 'one'
    path.parent.mkdir()
    writer = shards.Writer(tfds.core.FileFormat.ARRAY_RECORD, [shards.Shard('one', ())], None)
    writer.write(path, [(0, serialized(order))])
    written.append(path.read_bytes())
  assert serialized('ab') != serialized('ba') and written[0] == written[1]


def test_a_shelf_stores_its_source_with_any_name(tmp_path):
  shelf = shards.Shelf(tmp_path / 'shelf')
  assert shelf.source == ''
  odd = tmp_path / 'Fl\udcffche'
  shelf.open(odd)
  assert shelf.source == str(odd)
