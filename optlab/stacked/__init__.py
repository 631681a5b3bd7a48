"""Stacked runs: several runs of one kind, trained together in one process."""
