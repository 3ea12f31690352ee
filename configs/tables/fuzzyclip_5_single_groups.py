"""FuzzyCLIP, table 5: layers of single groups of VisA's categories and of both groups, on MVTec AD.

  python launch.py --config=configs/tables/fuzzyclip_5_single_groups.py:demo --workdir=runs/fuzzy5-demo
  python launch.py --config=configs/tables/fuzzyclip_5_single_groups.py --workdir=runs/fuzzy5

None of the table's numbers is known here, and its rows are a reading of what the paper says about it. The groups are
the paper's: the four circuit boards, and the rest.
"""

from zsad_jax.configs import fuzzyclip, tables

BOARDS = 'pcb1,pcb2,pcb3,pcb4'
OTHERS = 'candle,capsules,cashew,chewinggum,fryum,macaroni1,macaroni2,pipe_fryum'
DRAWN = 'leather,carpet,mesh', 'capsule,battery,plug'


def get_config(arg=None):
  """FuzzyCLIP's config and a row for every group; `:demo` on the embedded tiny CLIP."""
  whole = tables.system(fuzzyclip, from_mvtec='visa')
  first, second = DRAWN if arg == 'demo' else (BOARDS, OTHERS)
  systems = {f'{names.replace(",", ", ")} alone': tables.changed(whole, {'csp.k': 1, 'data.aux_categories': names})
             for names in (first, second)}
  systems['both groups'] = tables.changed(whole, {'csp.k': 2})
  return tables.grid(arg, 'FuzzyCLIP, table 5: single groups', tables.FUZZYCLIP, systems,
                     {'mvtec_ad': [()] * len(systems)}, base=whole)
