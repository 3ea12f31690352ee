"""FuzzyCLIP: readings of what its paper leaves open, one per row, all with two groups.

  python launch.py --config=configs/tables/fuzzyclip_readings.py:demo --workdir=runs/fuzzy-readings-demo
  python launch.py --config=configs/tables/fuzzyclip_readings.py --workdir=runs/fuzzy-readings

Nothing is published for these.
"""

from zsad_jax.configs import fuzzyclip, tables

ROWS = (
  ('default', {}),
  ('seed 112', {'seed': 112}), ('seed 113', {'seed': 113}),
  ('one group', {'csp.k': 1}), ('three groups', {'csp.k': 3}),
  ('clusters of bare names', {'csp.points': 'name_only'}), ('clusters of images', {'csp.points': 'image_mean'}),
  ('"object"', {'stack.names': 'object'}), ('commas', {'stack.sep': ', '}),
  ('group weights at scale 1', {'efa.scale': 1.0}), ('weights by training text', {'efa.weight_text': 'train_stack'}),
  ('weights by both sides', {'efa.weight_side': 'mean'}), ('alpha = 1 at its word', {'loss.alpha': 'literal'}),
  ("Adam's own betas", {'optim.b1': 0.9}), ('WinCLIP prompts', {'prompt.ensemble': 'winclip'}),
  ('CLIP-AD prompts', {'prompt.ensemble': 'clipad'}), ('smoothed', {'map.sigma': 1.0}),
  ('RPL lambda 0', {'rpl.lambda_text': 0.0}), ('RPL lambda 10', {'rpl.lambda_text': 10.0}),
  ('RPL lambda 100', {'rpl.lambda_text': 100.0}), ('RPL raw features', {'rpl.feat': 'raw'}),
  ('RPL at 1e-4', {'rpl.lr': 1e-4}), ('RPL tau 0.07', {'rpl.tau': 0.07}), ('RPL random start', {'rpl.init': 'random'}),
  ('RPL overwrites', {'rpl.deep': 'overwrite'}), ('RPL shared tokens', {'rpl.deep_shared': True}),
  ('a pair a group', {'rpl.k': 0}), ('score with map peak', {'rpl.add_map_max': True}),
  ('no RPL, target stack', {'score.text': 'stack_target'}), ('no RPL, auxiliary stack', {'score.text': 'stack_aux'}),
  ('no RPL, precise', {'score.text': 'precise'}),
)


def get_config(arg=None):
  """FuzzyCLIP's config with two groups, and a row for each reading; `:demo` on the embedded tiny CLIP."""
  c = fuzzyclip.get_config(arg)
  c.csp.k = 2
  rows = [tables.row(label, changes, clip='vit_l14_336') for label, changes in ROWS]
  return tables.table(c, 'FuzzyCLIP: readings of what the paper leaves open', rows)
