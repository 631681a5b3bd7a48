"""Launching makes the runs of a sweep exist: plan, check, train here or in a pool of workers."""
