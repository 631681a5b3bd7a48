"""Models, built by the YAML files of ``conf/model``."""
