"""Learning-rate sweeps, declared in YAML: models, data, norms, optimizers, runs and their store."""
