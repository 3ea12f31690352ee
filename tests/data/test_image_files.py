"""Search for image files below a folder."""

import pytest

from zsad_jax.data import image_files


def touch(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b'x')


def test_finds_images_in_order_and_skips_other_files(tmp_path):
  root = tmp_path / 'photos'
  touch(root, 'b/2.PNG', 'a.jpg', 'b/c/1.tiff', 'b/notes.txt', '.hidden.png', '.cache/x.png', 'out/1.png', 'b-2.webp')
  found = image_files.find(root, without=(root / 'out', tmp_path / 'absent'))
  assert [str(f) for f in found.files] == ['a.jpg', 'b/2.PNG', 'b/c/1.tiff', 'b-2.webp']
  assert found.root == root and found.links == 0


def test_links_neither_escape_nor_loop(tmp_path):
  root = tmp_path / 'photos'
  touch(root, 'a/1.png')
  touch(tmp_path, 'secret/2.png')
  (root / 'loop').symlink_to(root)
  (root / 'away').symlink_to(tmp_path / 'secret')
  (root / 'away.png').symlink_to(tmp_path / 'secret' / '2.png')
  (root / 'nowhere.png').symlink_to(root / 'gone.png')
  (root / 'itself.png').symlink_to(root / 'itself.png')
  (root / 'inside.png').symlink_to(root / 'a' / '1.png')
  found = image_files.find(root)
  assert [str(f) for f in found.files] == ['a/1.png', 'inside.png']
  assert found.links == 5
  (tmp_path / 'door').symlink_to(root)  # the folder that is asked for may be a link
  assert image_files.find(tmp_path / 'door').root == root


def test_a_single_file_is_returned_with_any_extension(tmp_path):
  touch(tmp_path, 'picture.dat')
  found = image_files.find(tmp_path / 'picture.dat')
  assert found.root / found.files[0] == tmp_path / 'picture.dat'


def test_a_folder_without_images_is_refused_with_its_content(tmp_path):
  touch(tmp_path, 'a.txt', 'b/c.pdf')
  with pytest.raises(FileNotFoundError, match=r'no image below it \(2 other files, 0 links'):
    image_files.find(tmp_path)
  with pytest.raises(FileNotFoundError, match='neither a folder nor a file'):
    image_files.find(tmp_path / 'nothing')
