"""W&B: a mirror of every run while it trains, publication of sweeps, and reading them back.

The run store is the truth and W&B a view of it; whatever goes wrong there never hurts a run. Here,
and nowhere else, wandb is imported: inside of functions, since it costs half a second.
"""
