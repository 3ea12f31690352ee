import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from zsad_jax.data import shards
from zsad_jax.data.survey import Item


def items(tmp_path, sizes):
  made = []
  for i, size in enumerate(sizes):
    path = tmp_path / f'{i}.png'
    path.write_bytes(b'x' * size)
    made.append(Item('part', 'test', 'good', str(i), path, None, 0))
  return made


@pytest.mark.parametrize(('sizes', 'runs'), [
  ([], []), ([0, 0, 0], [3]), ([4, 5, 1, 9, 1], [3, 2]), ([10, 10], [1, 1]), ([99, 1, 99], [1, 2]),
  ([9, 99, 1], [2, 1])])
def test_a_shard_ends_with_the_image_that_fills_it(tmp_path, monkeypatch, sizes, runs):
  monkeypatch.setattr(shards, 'SHARD_BYTES', 10)
  given = items(tmp_path, sizes)
  divided = shards.divide(given)
  assert [len(run) for run in divided] == runs and [item for run in divided for item in run] == given


def laid_out(names):
  """A record whose fields lie in this order: messages laid end to end are merged when they are read."""
  data = b''
  for name in names:
    field = tf_example_pb2.Example()
    field.features.feature[name].bytes_list.value.append(name.encode())
    data += field.SerializeToString()
  return data


def test_the_order_in_which_protobuf_lays_out_a_record_does_not_show(tmp_path):
  written = []
  for order in (('id', 'image', 'mask'), ('mask', 'id', 'image')):
    path = tmp_path / order[0] / 'one'
    path.parent.mkdir()
    writer = shards.Writer(tfds.core.FileFormat.ARRAY_RECORD, [shards.Shard('one', ())], None)
    writer.write(path, [(0, laid_out(order))])
    written.append(path.read_bytes())
  assert laid_out('ab') != laid_out('ba') and written[0] == written[1]


def test_a_shelf_remembers_its_source_whatever_its_name(tmp_path):
  shelf = shards.Shelf(tmp_path / 'shelf')
  assert shelf.source == ''
  odd = tmp_path / 'Fl\udcffche'
  shelf.open(odd)
  assert shelf.source == str(odd)
