"""Shared config keys, with the defaults of the published protocol, and helpers for configs of methods."""

import ml_collections as mlc


def base():
  """Returns the keys shared by all methods, with the values of the published protocol.

  Keys are grouped by what they affect. The top level and a method's own groups are the model: CLIP, method, seed.
  `data`, `train`, `optim` and `eval` say what it is trained and evaluated on and how. `predict` is for images without
  labels. `machine`, `report`, `bench` and `export` change no number.
  """
  c = mlc.ConfigDict()
  c.seed = 111
  c.seeds = 1  # number of runs, with seed, seed + 1, ...; their mean and standard deviation are reported
  c.clip = 'vit_l14_336'  # a name from checkpoints/README.md, a folder with config.json, or a .safetensors file
  c.arch = ''  # architecture of a bare .safetensors file; otherwise it comes with the name or folder
  c.checkpoint = ''  # released trainable parameters (.safetensors) to use instead of training
  c.image_size = 518  # pixels per side; images are resized to a square
  c.precision = 'float32'  # of the towers' matrix products; bfloat16 keeps residuals, norms and softmax in float32
  c.feature_dtype = 'float32'  # of stored features; bfloat16 halves their size
  c.object_names = 'folder'  # in prompts: 'pcb1', as in the official code; catalogue: 'printed circuit board'

  c.data = mlc.ConfigDict()
  c.data.aux = 'visa'  # auxiliary data set, for training: a name, folder:PATH or csv:PATH
  c.data.target = 'mvtec_ad'  # target data set, for evaluation
  c.data.split = 'test'  # the split with anomalies, of both data sets
  c.data.aux_categories = ''  # comma-separated; '' = all
  c.data.target_categories = ''
  c.data.transparency = 'default'  # the data set's own rule, mostly white behind transparent pixels; drop: ignore alpha
  c.data.on_bad = 'error'  # skip: leave out damaged images of a folder: or csv: data set, counted and named
  c.data.exif = 'ignore'  # as in the official code; apply: rotate images and masks upright by their tags
  c.data.allow_seen = False  # evaluate on images or categories of the training

  c.train = mlc.ConfigDict()
  c.train.epochs = 15
  c.train.batch = 8
  c.train.shuffle = True  # reshuffle every epoch; False keeps the data set's order, class by class

  c.eval = mlc.ConfigDict()
  c.eval.fpr_limit = 0.3  # of AUPRO
  c.eval.aupr = 'step'  # AP as average precision; trapezoid: linear interpolation of the precision-recall curve
  c.eval.oracle_epoch = False  # also report the epoch that is best on the target, labelled as such
  c.eval.std_ddof = 1  # standard deviation over seeds divides by n - std_ddof

  c.predict = mlc.ConfigDict()  # --mode=predict
  # Source of the threshold: fpr or f1_max (of the auxiliary data set), normals, batch (fitted to the predicted images)
  # or a number. auto: normals if predict.normals has images that are not references, else fpr, or batch without an
  # auxiliary data set.
  c.predict.threshold = 'auto'
  c.predict.pixel_threshold = 'auto'  # of masks: the same rule as for images, or one of its own
  c.predict.fpr = 0.05  # fpr, batch: share of normal images that may be called anomalous
  c.predict.pixel_fpr = 0.01  # fpr: share of normal pixels
  c.predict.quantile = 0.95  # normals: share of them below the threshold
  c.predict.normals = ''  # folder of normal images, for threshold normals and as references of few-shot methods
  c.predict.object_name = 'object'  # what prompts call the object, if they name it
  c.predict.batch = 8  # images per step
  c.predict.maps = 'png16'  # 16-bit PNG; npy: float32, npy16: float16, or none
  c.predict.masks = True
  c.predict.overlays = True

  c.machine = mlc.ConfigDict()  # paths, batch sizes and memory; changes no result
  c.machine.data_dir = 'data'  # prepared data sets
  c.machine.manual_dir = ''  # unpacked archives; '' = <data_dir>/downloads/manual
  c.machine.feature_dir = ''  # feature store; '' = <data_dir>/features
  c.machine.store_features = True  # False runs the image tower on every read and stores nothing
  c.machine.max_feature_gb = 50.0  # refuse to write a larger feature store
  c.machine.encode_batch = 8  # images encoded at once; on a CPU at 518 px, 1 is fastest
  c.machine.eval_batch = 8  # images predicted at once
  c.machine.knn_mib = 64.0  # MiB of distances to reference patches held at once per image
  c.machine.max_memory_gb = 0.0  # refuse to start a run that needs more memory, in 1e9 bytes; 0 = no limit
  c.machine.shard_weights = False  # shard CLIP's weights across devices: for towers too large for one; slower

  c.report = mlc.ConfigDict()  # pictures and figures of an evaluation
  c.report.pictures = 12  # images per category on the HTML page and the overlays, a third its worst errors; 0 = none
  c.report.figures = True  # score histograms and pixel curves on the page, if it has pictures
  c.report.tsne = False  # t-SNE of class tokens and text features; RWDA: of its network's layers too
  c.report.attention = 0  # block, from 1, whose attention is drawn in the modes q-k, q-q, k-k and v-v; 0 = none

  c.bench = mlc.ConfigDict()  # --mode=bench
  c.bench.images = 16  # images timed
  c.bench.source = 'drawn'  # or target: the first images of data.target
  c.bench.pixels = 1024  # pixels per side of drawn images, which are PNG files
  c.bench.repeats = 5  # timed passes; the median and the range are reported
  c.bench.random_weights = False  # random weights of the real shapes: times are valid, scores are not

  c.export = mlc.ConfigDict()  # --mode=export
  c.export.category = ''  # name of the object, for methods whose texts name it or that compare with references
  c.export.batch = 0  # images per call; 0 = any number, one after another, which is fastest on a CPU
  c.export.platforms = 'cpu,cuda,tpu'  # platforms that the program runs on
  c.export.inline_gb = 1.9  # larger weights are saved next to the program, which cannot hold 2 GB
  c.export.threshold = ''  # written next to the program; images that score at least this are anomalous
  return c


def multicrop():
  """Returns the keys of multi-crop prediction, for methods whose image score is the class token's probability."""
  c = mlc.ConfigDict()
  c.recipe = 'none'  # the whole image; ten: the mean of ten crops; clip_ad: the mean of both (2311.00453, suppl. D)
  c.average = 'prob'  # quantity that is averaged: prob, logit or embedding
  c.resize = 0  # pixels per side of the image that crops are cut from; 0 = 270/240 of image_size
  return c


def embedded():
  """Returns the keys that differ for the embedded tiny CLIP and the synthetic data sets."""
  c = mlc.ConfigDict()
  c.clip, c.image_size = 'tiny', 112
  c.data = mlc.ConfigDict(dict(aux='synthetic_aux', target='synthetic_target'))
  c.machine = mlc.ConfigDict(dict(encode_batch=16, eval_batch=16))
  return c


def choice(arg, *allowed):
  """Returns the variant of `--config=NAME:arg`, '' if there is none; raises ValueError if it is not allowed."""
  if arg and arg not in allowed:
    has = ', '.join(f':{a}' for a in allowed) or 'none'
    raise ValueError(f'unknown variant :{arg}; this config has {has}')
  return arg or ''
