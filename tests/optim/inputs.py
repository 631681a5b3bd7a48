"""The adversarial inputs of all tests of optimizers, in one place."""

from __future__ import annotations

import torch
from torch import Tensor

SIZES = ((7, 5), (5, 7), (6, 6), (4, 16), (16, 4), (1, 9), (9, 1), (1, 1))


def matrices() -> dict[str, Tensor]:
    """Name -> matrix, float64: shapes, ranks, spectra and magnitudes that break things."""
    torch.manual_seed(0)
    found = {f"{m}x{n}": torch.randn(m, n, dtype=torch.float64) for m, n in SIZES}
    column, row = torch.randn(7, 1, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    return {
        **found,
        "zero": torch.zeros(7, 5, dtype=torch.float64),
        "one entry": torch.zeros(7, 5, dtype=torch.float64).index_fill_(0, torch.tensor([2]), 3.0),
        "rank one": column @ row,
        "1e-20": 1e-20 * found["7x5"],
        "1e20": 1e20 * found["7x5"],
        "wide spectrum": spectrum(6, 9, 1e-8),
    }


def nonzero_matrices() -> dict[str, Tensor]:
    return {name: x for name, x in matrices().items() if name != "zero"}


def spectrum(m: int, n: int, smallest: float) -> Tensor:
    """An m x n matrix with singular values from 1 down to ``smallest``, evenly in logarithm."""
    u, _, vt = torch.linalg.svd(torch.randn(m, n, dtype=torch.float64), full_matrices=False)
    exponents = torch.linspace(0, 1, min(m, n), dtype=torch.float64)
    return (u * smallest**exponents) @ vt


def spectra(m: int, n: int) -> dict[str, Tensor]:
    """Matrices that a polar iteration in bfloat16 has to survive."""
    torch.manual_seed(1)
    dominant = spectrum(m, n, 1e-3)
    u, _, vt = torch.linalg.svd(torch.randn(m, n, dtype=torch.float64), full_matrices=False)
    low_rank = (torch.arange(min(m, n)) < min(m, n) // 8).double()
    one_large = torch.full((min(m, n),), 1e-3, dtype=torch.float64)
    one_large[0] = 1.0
    return {
        "gaussian": torch.randn(m, n, dtype=torch.float64),
        "spread 1e-3": dominant,
        "spread 1e-8": spectrum(m, n, 1e-8),
        "rank n / 8": (u * low_rank) @ vt,
        "one dominant": (u * one_large) @ vt,
        "rank one": u[:, :1] @ vt[:1],
        "cauchy": torch.randn(m, n, dtype=torch.float64) / torch.randn(m, n, dtype=torch.float64),
        "zero": torch.zeros(m, n, dtype=torch.float64),
    }
