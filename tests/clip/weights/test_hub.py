"""Resolving names and paths to verified weights: offline, from a hub, from folders and files, and every error."""

import hashlib
import http.server
import json
import threading

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.weights import arch_config, hub, port, published, safetensors_files

MINI = clip_lib.Arch('mini', 12, clip_lib.Vision(24, 8, 20, 2, 4), clip_lib.Text(9, 31, 18, 3, 3))
ORIGINAL = b'the bytes of mini.pt'


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)
  return port.to_state_dict(jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32),
                                     clip_lib.template(MINI)))


@pytest.fixture(autouse=True)
def registry(monkeypatch):
  """Adds a small model with three published tags to the real ones."""
  entry = lambda tag, act, sha: published.Weights(f'someone/mini.{tag}', f'mini-{tag}.pt', sha, act)
  monkeypatch.setitem(clip_lib.ARCHS, 'mini', MINI)
  monkeypatch.setitem(published.PUBLISHED, 'mini', {
      'e32': entry('e32', 'gelu', hashlib.sha256(ORIGINAL).hexdigest()), 'e31': entry('e31', 'gelu', '3146e3e3'),
      'openai': entry('openai', 'quick_gelu', '0' * 64)})


@pytest.fixture
def folder(tmp_path, arrays):
  safetensors_files.write(tmp_path / 'mini' / 'model.safetensors', arrays)
  (tmp_path / 'mini' / 'config.json').write_text(json.dumps(arch_config.to_json(MINI)))
  return tmp_path / 'mini'


def point_at(monkeypatch, endpoint):
  monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', endpoint + '/{repo_id}/resolve/{revision}/{filename}')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  for name in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'):
    monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake_hub(monkeypatch):
  """Serves a hub with `pages` {path: (bytes, stated digest)} on this machine; yields pages and the log of requests."""
  pages, log = {}, []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
      self.answer(False)

    def do_GET(self):
      self.answer(True)

    def answer(self, body):
      log.append((self.command, self.path))
      repo, _, rest = self.path.removeprefix('/').partition('/resolve/')
      data, digest = pages.get(f'{repo}/{rest.partition("/")[2]}', (None, ''))
      self.send_response(404 if data is None else 200)
      self.send_header('X-Repo-Commit', '1' * 40)
      self.send_header('ETag', f'"{digest}"')
      self.send_header('Content-Length', str(len(data or b'')))
      if data is None:
        self.send_header('X-Error-Code', 'EntryNotFound')
      self.end_headers()
      if body and data:
        self.wfile.write(data)

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  point_at(monkeypatch, f'http://127.0.0.1:{server.server_port}')
  yield pages, log
  server.shutdown()
  server.server_close()


def test_a_folder_with_our_config(folder, arrays):
  local = hub.resolve(folder)
  assert local == hub.LocalWeights(MINI, folder / 'model.safetensors', None, local.sha256, str(folder))
  assert local.sha256 == safetensors_files.sha256(folder / 'model.safetensors')
  (folder / 'tokenizer.json').write_text('{}')
  assert hub.resolve(str(folder), arch='mini:openai').tokenizer_path == folder
  clip_params = port.from_state_dict(safetensors_files.read(local.path), clip_lib.template(local.arch), local.arch)
  np.testing.assert_array_equal(clip_params['visual']['proj']['kernel'], arrays['visual.proj'])


def test_a_folder_of_open_clip_uses_its_own_config_and_weights(folder, arrays):
  (folder / 'config.json').write_text('{"architecture": "vit_mini", "num_classes": 0}')
  (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': {
      'embed_dim': 12, 'vision_cfg': {'image_size': 24, 'patch_size': 8, 'width': 20, 'layers': 2, 'head_width': 5},
      'text_cfg': {'context_length': 9, 'vocab_size': 31, 'width': 18, 'layers': 3, 'heads': 3}}}))
  safetensors_files.write(folder / 'open_clip_model.safetensors', arrays)
  local = hub.resolve(folder)
  assert local.path.name == 'open_clip_model.safetensors'
  assert (local.arch.activation, local.arch.vision) == ('gelu', MINI.vision)


def test_a_folder_and_an_arch_that_disagree_are_refused(folder):
  with pytest.raises(ValueError, match=r"config.json says activation quick_gelu, but arch='mini' has gelu"):
    hub.resolve(folder, arch='mini:e32')
  with pytest.raises(ValueError, match=r"config.json says embed_dim 12, but arch='vit_b16' has 512"):
    hub.resolve(folder, arch='vit_b16')


def test_folders_without_usable_weights_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no weights in .*expected open_clip_model.safetensors or .*nothing'):
    hub.resolve(tmp_path)
  (tmp_path / 'pytorch_model.bin').write_bytes(b'\x80\x02')
  with pytest.raises(ValueError, match=r'pytorch_model\.bin is a pickled.*\n.*convert .*pytorch_model\.bin '):
    hub.resolve(tmp_path)
  for i in range(2):
    safetensors_files.write(tmp_path / f'shard{i}.safetensors', {'a': np.zeros(1, np.float32)})
  with pytest.raises(ValueError, match=r'several weights .shard0.safetensors, shard1'):
    hub.resolve(tmp_path)


def test_a_bare_file_needs_its_architecture(folder):
  path = folder / 'model.safetensors'
  with pytest.raises(ValueError, match=r'does not state its architecture; pass arch=, one of vit_b32, '):
    hub.resolve(path)
  assert hub.resolve(path, arch='mini:e32').arch.activation == 'gelu'
  assert hub.resolve(path, arch=MINI).arch == MINI
  (folder / 'config.json').unlink()
  assert hub.resolve(folder, arch=MINI).path == path


def test_a_converted_file_knows_its_architecture(tmp_path, arrays):
  path = tmp_path / 'a.safetensors'
  safetensors_files.write(path, arrays, {'weights': 'mini:e32'})
  assert hub.resolve(path).arch.activation == 'gelu'
  with pytest.raises(ValueError, match=r"a.safetensors says activation gelu, but arch='mini' has quick_gelu"):
    hub.resolve(path, arch='mini:openai')


@pytest.mark.parametrize('name, near', [('vit_l14_366', 'vit_l14_336'), ('vit_b16:openia', 'vit_b16:openai')])
def test_unknown_names_are_refused_with_the_nearest(name, near):
  with pytest.raises(ValueError, match=rf"unknown weights '{name}'.*did you mean .*{near}.*tiny, vit_b32"):
    hub.resolve(name)


@pytest.mark.parametrize('path', ['gone.pt', 'some/folder', 'gone.safetensors'])
def test_missing_paths_are_named(path):
  with pytest.raises(FileNotFoundError, match=path):
    hub.resolve(path, arch='vit_b16')


def test_pickles_are_refused_with_the_converters_command(tmp_path):
  path = tmp_path / 'ViT-B-16.pt'
  path.write_bytes(b'PK\3\4')
  with pytest.raises(ValueError, match=r'never loaded.*\n .*weights.convert .*ViT-B-16.safetensors'):
    hub.resolve(path, arch='vit_b16')


def test_offline_errors_name_the_file_and_its_folder(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    hub.resolve('vit_l14_336', cache_dir=tmp_path, offline=True)
  message = str(error.value)
  place = tmp_path / 'vit_l14_336.openai'
  assert f'{place / "open_clip_model.safetensors"} does not exist' in message
  assert 'open_clip_model.safetensors of timm/vit_large_patch14_clip_336.openai on the Hugging Face hub' in message
  assert 'ViT-L-14-336px.pt (sha256 3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02)' in message
  assert f'python -m zsad_jax.clip.weights.convert ViT-L-14-336px.pt {place / "model.safetensors"}' in message
  assert list(tmp_path.iterdir()) == []


def test_offline_errors_of_resnets_name_openais_files(tmp_path):
  for name, repo, file, digest in (('rn50', 'timm/resnet50_clip.openai', 'RN50.pt', 'afeb0e10'),
                                   ('rn101', 'timm/resnet101_clip.openai', 'RN101.pt', '8fa8567b')):
    with pytest.raises(FileNotFoundError, match=rf'of {repo} on the Hugging.*{file} \(sha256 {digest}[0-9a-f]{{56}}\)'):
      hub.resolve(name, cache_dir=tmp_path, offline=True)


def test_no_network_is_an_error_at_once(tmp_path, monkeypatch):
  point_at(monkeypatch, 'http://127.0.0.1:9')
  with pytest.raises(FileNotFoundError, match=r'cannot be downloaded: .*refused.*Put that file there by hand'):
    hub.resolve('mini', cache_dir=tmp_path)


def test_a_file_placed_by_hand_needs_no_network(tmp_path, arrays):
  path = tmp_path / 'mini.e32' / 'model.safetensors'
  safetensors_files.write(path, arrays)
  local = hub.resolve('mini', cache_dir=tmp_path, offline=True)
  assert local.path == path
  assert local.arch.activation == 'gelu'
  assert local.source == 'mini:e32 (someone/mini.e32)'


def hub_page(arrays, tmp_path):
  path = tmp_path / 'page.safetensors'
  digest = safetensors_files.write(path, arrays)
  return path.read_bytes(), digest


def test_downloads_are_verified_and_not_repeated(tmp_path, fake_hub, arrays):
  pages, log = fake_hub
  data, digest = hub_page(arrays, tmp_path)
  pages['someone/mini.e32/open_clip_model.safetensors'] = data, digest
  local = hub.resolve('mini:e32', cache_dir=tmp_path / 'cache')
  assert local.path == tmp_path / 'cache' / 'mini.e32' / 'open_clip_model.safetensors'
  assert local.sha256 == digest == safetensors_files.read_digest(safetensors_files.digest_path(local.path))
  requests = len(log)
  assert hub.resolve('mini:e32', cache_dir=tmp_path / 'cache') == local
  assert len(log) == requests
  local.path.write_bytes(data[:-1] + b'\x55')
  with pytest.raises(ValueError, match=f'but {digest} is recorded in'):
    hub.resolve('mini:e32', cache_dir=tmp_path / 'cache')


def test_a_download_with_a_wrong_digest_is_renamed(tmp_path, fake_hub, arrays):
  pages, _ = fake_hub
  data, digest = hub_page(arrays, tmp_path)
  pages['someone/mini.e32/open_clip_model.safetensors'] = data[:-1] + b'\x55', digest
  with pytest.raises(ValueError, match=rf'has sha256 .*, not {digest}; .*\.bad'):
    hub.resolve('mini', cache_dir=tmp_path)
  assert not (tmp_path / 'mini.e32' / 'open_clip_model.safetensors').exists()
  assert (tmp_path / 'mini.e32' / 'open_clip_model.safetensors.bad').exists()


def test_a_file_that_the_hub_lacks_is_an_error(tmp_path, fake_hub):
  with pytest.raises(FileNotFoundError, match=r'cannot be downloaded: 404'):
    hub.resolve('mini', cache_dir=tmp_path)


def test_equal_bytes_of_two_tags_are_refused(tmp_path, fake_hub, arrays):
  pages, _ = fake_hub
  for tag in ('e31', 'e32'):
    pages[f'someone/mini.{tag}/open_clip_model.safetensors'] = hub_page(arrays, tmp_path)
  hub.resolve('mini:e31', cache_dir=tmp_path / 'cache')
  with pytest.raises(ValueError, match=r'mini.e32/.* and .*mini.e31/.* are the same bytes'):
    hub.resolve('mini:e32', cache_dir=tmp_path / 'cache')


def test_a_conversion_of_another_tag_is_refused(tmp_path, arrays):
  safetensors_files.write(tmp_path / 'mini.e32' / 'model.safetensors', arrays, {'weights': 'mini:e31'})
  with pytest.raises(ValueError, match=r'was converted from mini:e31, not mini:e32; move it to .*mini\.e31'):
    hub.resolve('mini:e32', cache_dir=tmp_path, offline=True)


def test_published_tags_have_their_own_repositories_and_digests():
  repos = [w.repo for tags in published.PUBLISHED.values() for w in tags.values()]
  digests = [w.sha256 for tags in published.PUBLISHED.values() for w in tags.values()]
  assert len(set(repos)) == len(repos)
  assert len(set(digests)) == len(digests)
  assert {len(d) for d in digests} == {8, 64}
  for model, tags in published.PUBLISHED.items():
    assert model in clip_lib.ARCHS
    for tag, entry in tags.items():
      assert published.find_digest(entry.sha256.ljust(64, 'f')) == f'{model}:{tag}'
      assert tag in entry.repo
  assert published.PUBLISHED['vit_b16_plus_240']['laion400m_e32'].sha256 == '699c4b84'
  assert published.find_digest('f' * 64) == ''


@pytest.mark.parametrize('name, activation', [
    ('vit_b32', 'quick_gelu'), ('vit_b32:laion400m_e32', 'quick_gelu'), ('vit_b16', 'quick_gelu'),
    ('vit_b16:laion400m_e31', 'gelu'), ('vit_b16_plus_240', 'gelu'), ('vit_l14:laion400m_e32', 'gelu'),
    ('vit_l14_336', 'quick_gelu'), ('rn50', 'quick_gelu'), ('rn101:openai', 'quick_gelu'),
])
def test_the_activation_belongs_to_the_weights(name, activation):
  assert published.find(name)[2].activation == activation


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv('ZSAD_CACHE', str(tmp_path))
  assert hub.default_cache() == tmp_path
  monkeypatch.delenv('ZSAD_CACHE')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert hub.default_cache() == tmp_path / '.cache' / 'zsad_jax'

  def homeless():
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.setattr(hub.Path, 'home', homeless)
  with pytest.raises(ValueError, match=r'no home directory.*set ZSAD_CACHE'):
    hub.default_cache()


def test_local_weights_need_no_home_directory(folder, monkeypatch):
  def homeless():
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.setattr(hub.Path, 'home', homeless)
  monkeypatch.delenv('ZSAD_CACHE', raising=False)
  assert hub.resolve(folder).arch == MINI


def test_tiny_is_part_of_the_package(folder, monkeypatch, tmp_path):
  monkeypatch.setattr(hub, '__file__', str(tmp_path / 'zsad_jax' / 'clip' / 'weights' / 'hub.py'))
  tiny = tmp_path / 'zsad_jax' / 'checkpoints' / 'tiny'
  with pytest.raises(FileNotFoundError, match=rf'{tiny}; reinstall'):
    hub.resolve('tiny')
  tiny.parent.mkdir(parents=True)
  folder.rename(tiny)
  assert hub.resolve('tiny').path == tiny / 'model.safetensors'


def test_the_readme_lists_all_published_weights():
  readme = (safetensors_files.Path(__file__).parents[3] / 'checkpoints' / 'README.md').read_text()
  for model, tags in published.PUBLISHED.items():
    for tag, entry in tags.items():
      activation = {'quick_gelu': 'QuickGELU', 'gelu': 'GELU'}[entry.activation]
      row = f'| `{model}:{tag}` | {activation} | `{entry.repo}` | `{entry.original}` | `{entry.digest_text}` |'
      assert model == 'mini' or row in readme


def test_architectures_are_known_without_weights(folder, tmp_path, monkeypatch):
  (folder / 'model.safetensors').write_bytes(b'not read')
  assert hub.architecture(folder) == MINI
  assert hub.architecture('vit_b16:laion400m_e32').activation == 'gelu'
  assert hub.architecture(tmp_path / 'later.safetensors', arch='vit_b32') == clip_lib.ARCHS['vit_b32']
  with pytest.raises(ValueError, match=r"config.json says embed_dim 12, but arch='vit_b16' has 512"):
    hub.architecture(folder, arch='vit_b16')
  with pytest.raises(ValueError, match=r'did you mean .*vit_l14_336'):
    hub.architecture('vit_l14_366')
  with pytest.raises(FileNotFoundError, match=r'weights file .*later'):
    hub.architecture(tmp_path / 'later.safetensors')
