"""From the store's table to learning-rate-sensitivity curves, robustness numbers and figures."""
