"""Hydra's view of optlab: search path, sweeper and launchers, each a few lines over `optlab`."""
