"""Hydra's view of optlab: sweeper and launchers, each a few lines over `optlab`."""
