"""Run one config, or with ``-m`` a sweep.  python launch.py --help"""

import sys

import hydra

from optlab.launch.command_line import checked, train_one


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: object) -> None:
    """The task of a single run; sweeps go through the plugins in hydra_plugins/."""
    del cfg
    train_one()


if __name__ == "__main__":
    with checked(sys.argv[1:]):
        main()
