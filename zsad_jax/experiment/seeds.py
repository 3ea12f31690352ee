"""Several seeds of one experiment: their configs, folders, and the spread of their results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsad_jax.experiment.run import Run


def of_run(run: Run) -> list[Run]:
  """Returns a run for each of the config's seeds: seed, seed + 1, ...; each draws references of its own.

  One run stands for all if nothing depends on the seed.
  """
  if run.cfg.seeds == 1 or not (run.trains or run.shots):
    return [run.with_overrides({'seeds': 1})]
  draws = lambda number: {'fewshot.seed': run.cfg.fewshot.seed + number} if 'fewshot' in run.cfg else {}
  return [run.with_overrides({'seeds': 1, 'seed': run.cfg.seed + number, **draws(number)})
          for number in range(run.cfg.seeds)]


def folder(workdir: Path, run: Run, of: int) -> Path:
  """Returns the folder of a seed's checkpoints: the workdir itself if it is the only one `of` so many seeds."""
  return workdir / f'seed{run.cfg.seed}' if of > 1 else workdir


def spread(summaries: Sequence[Mapping[str, Mapping]], ddof: int) -> dict[str, dict[str, Any]]:
  """Returns {metric: {'value', 'std', 'values', 'reason'}} from the metrics.summarise of every seed.

  value and std, which divides by n - ddof, are those of the seeds' means over categories; None if any is undefined. std
  is None for too few seeds.
  """
  spreads = {}
  for metric, first in summaries[0].items():
    values = [summary[metric]['value'] for summary in summaries]
    defined, few = None not in values, len(values) <= ddof
    spreads[metric] = {'value': float(np.mean(values)) if defined else None,
                       'std': float(np.std(values, ddof=ddof)) if defined and not few else None, 'values': values,
                       'reason': first['reason']}
  return spreads
