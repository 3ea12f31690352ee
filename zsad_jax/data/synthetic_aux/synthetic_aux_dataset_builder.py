"""The auxiliary group of the procedural data set: three surfaces and three objects."""

from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data.synthetic import builder


class Builder(builder.DrawnBuilder):
  """tfds builder of the procedural categories that prompts are trained on; nothing is downloaded."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  GROUP = 'aux'
