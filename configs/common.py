"""What every config starts from: the keys that no method owns, with their defaults."""

import ml_collections as mlc


def base():
  """The keys shared by all methods: a ConfigDict with the published protocol's values."""
  c = mlc.ConfigDict()
  c.seed = 111
  c.clip = 'vit_l14_336'  # a name of checkpoints/README.md, a folder with config.json, or a .safetensors file
  c.arch = ''  # architecture of a bare .safetensors file; otherwise it comes with the name or folder
  c.checkpoint = ''  # evaluate the official prompts of this .safetensors file in place of training
  c.image_size = 518  # pixels a side; both axes are resized to it
  c.shard_weights = False  # each device holds its part of CLIP's weights, not all: for towers too large for one; slower
  c.precision = 'float32'  # of the towers' matrix products; bfloat16 leaves residuals, norms and softmaxes in float32
  c.max_memory_gb = 0.0  # refuse to start what would take more memory, 1e9 bytes; 0 = no bound

  c.data = mlc.ConfigDict()
  c.data.root = 'data'  # prepared data sets are kept here
  c.data.manual_dir = ''  # unpacked archives; '' = <root>/downloads/manual
  c.data.aux = 'visa'  # trained on; a data set's name, folder:PATH or csv:PATH
  c.data.target = 'mvtec_ad'  # evaluated on
  c.data.split = 'test'  # the split with anomalies, of both sets
  c.data.aux_categories = ''  # comma-separated; '' = all
  c.data.target_categories = ''
  c.data.names = 'folder'  # in prompts, as the official code: 'pcb1'; or 'catalogue': 'printed circuit board'
  c.data.transparency = 'default'  # the data set's own: mostly 'white' behind transparent pixels, or 'drop' alpha
  c.data.on_bad = 'error'  # or 'skip': damaged images of a folder: or csv: set are left out, counted and named
  c.data.exif = 'ignore'  # as the official code; 'apply' turns images and masks upright by their tags
  c.data.allow_seen = False  # evaluate images or categories that were trained on

  c.train = mlc.ConfigDict()
  c.train.epochs = 15
  c.train.batch = 8
  c.train.shuffle = True  # anew every epoch; False keeps the data set's order, class by class

  c.features = mlc.ConfigDict()
  c.features.store = True  # False runs the image tower at every read and keeps nothing on disk
  c.features.dir = ''  # the feature store; '' = <data.root>/features
  c.features.max_gb = 50.0  # refuse to write a larger store
  c.features.storage = 'float32'  # or bfloat16, half the size
  c.features.batch = 8  # images encoded at once; on a CPU at 518 px, 1 is fastest

  c.eval = mlc.ConfigDict()
  c.eval.batch = 8
  c.eval.fpr_limit = 0.3  # of AUPRO
  c.eval.aupr = 'step'  # AP: average precision; trapezoid: straight lines between the points of the curve
  c.eval.oracle_epoch = False  # report the epoch that is best on the target as well, under a name of its own
  c.eval.pictures = 12  # images per category on the page and the overlay sheets, a third its worst errors; 0 = none
  c.eval.tsne = False  # draw class tokens and texts in the plane; of a method that learns from texts, its layers too
  c.eval.attention = 0  # block, from 1, whose attention is drawn in the modes q-k, q-q, k-k and v-v; 0 = none
  c.eval.figures = True  # score histograms and pixel curves on the page, where there are pictures

  c.bench = mlc.ConfigDict()  # of --mode=bench
  c.bench.images = 16  # images timed
  c.bench.source = 'drawn'  # or target: the first images of data.target
  c.bench.pixels = 1024  # pixels a side of drawn images, which are PNG files
  c.bench.repeats = 5  # timed passes, of which the median and the range are given
  c.bench.random_weights = False  # weights of the right shapes without a download: times hold, scores mean nothing

  c.export = mlc.ConfigDict()  # of --mode=export
  c.export.category = ''  # the object as one says it, for methods that name it or compare with references of it
  c.export.batch = 0  # images a call; 0 = any number, one after another, as is fastest on a CPU
  c.export.platforms = 'cpu,cuda,tpu'  # that the artifact runs on
  c.export.inline_gb = 1.9  # larger weights lie beside the program, which cannot hold 2 GB
  c.export.threshold = ''  # written beside the program; scores above it are anomalous

  c.predict = mlc.ConfigDict()  # of --mode=predict
  # fpr or f1_max of the auxiliary set, normals, batch (fitted to the predicted images) or a number; auto: normals where
  # predict.normals has any that are not references, otherwise fpr, or batch without an auxiliary set.
  c.predict.threshold = 'auto'
  c.predict.pixel_threshold = 'auto'  # of masks: by the rule of the images, or one of its own
  c.predict.fpr = 0.05  # fpr, batch: share of normal images that may be called anomalous
  c.predict.pixel_fpr = 0.01  # fpr: share of normal pixels
  c.predict.quantile = 0.95  # normals: share of them below the threshold
  c.predict.normals = ''  # folder of normal images, for threshold normals and as references of few-shot methods
  c.predict.object_name = 'object'  # what prompts call the pictured thing, where they name it
  c.predict.batch = 8  # images at once
  c.predict.maps = 'png16'  # 16-bit PNG; npy: float32, npy16: float16, or none
  c.predict.masks = True
  c.predict.overlays = True
  return c


def multicrop():
  """The keys of multi-crop prediction, which every method has whose image score is the class token's probability."""
  c = mlc.ConfigDict()
  c.recipe = 'none'  # the whole image; ten: the mean of ten crops; clip_ad: the mean of both (2311.00453, suppl. D)
  c.average = 'prob'  # what is averaged: prob, logit or embedding
  c.resize = 0  # pixels a side that crops of image_size are cut from; 0 = 270/240 of image_size
  return c


def embedded():
  """The keys that differ with the tiny CLIP and the data sets that are drawn on this machine."""
  c = mlc.ConfigDict()
  c.clip, c.image_size = 'tiny', 112
  c.data = mlc.ConfigDict(dict(aux='synthetic_aux', target='synthetic_target'))
  c.features = mlc.ConfigDict(dict(batch=16))
  c.eval = mlc.ConfigDict(dict(batch=16))
  return c


def choice(arg, *allowed):
  """The part of `--config=file.py:arg` that names a variant, or '' when there is none.

  Raises ValueError naming the variants when `arg` is not one of them.
  """
  if arg and arg not in allowed:
    has = ', '.join(f':{a}' for a in allowed) or 'none'
    raise ValueError(f'unknown variant :{arg}; this config has {has}')
  return arg or ''
