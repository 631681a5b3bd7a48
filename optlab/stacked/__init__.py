"""Runs trained together: replicas of one model, stacked along a leading axis."""
