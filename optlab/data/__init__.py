"""Datasets, held in memory: each a frozen dataclass of facts that loads itself."""
