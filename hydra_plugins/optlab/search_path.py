"""Makes ``sweeps/`` a config group, whatever the working directory."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from optlab.config import ROOT


class OptlabSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("optlab", f"file://{ROOT}")
