r"""Train, evaluate and use zero-shot anomaly detectors: the command `zsad`, run from a checkout.

  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo
  python launch.py --config=configs/anomalyclip.py --workdir=runs/visa-to-mvtec --config.machine.data_dir=/data
  python launch.py --config=configs/anomalyclip.py --workdir=runs/visa-to-mvtec --mode=evaluate
  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo --mode=predict --path=PHOTOS
  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo --mode=bench
  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo --mode=export
  python launch.py --config=configs/tables/clip_ad_4_rvs.py:demo --workdir=runs/table4-demo
  python launch.py --mode=report --results runs/visa-to-mvtec runs/mvtec-to-visa
  python launch.py --mode=datasets list
  python launch.py --mode=datasets verify mvtec_ad visa --manual_dir=DOWNLOADS
  python launch.py --mode=datasets prepare mvtec_ad folder:MY_IMAGES --data_root=/data
"""

from zsad_jax import cli

if __name__ == '__main__':
  cli.run()
