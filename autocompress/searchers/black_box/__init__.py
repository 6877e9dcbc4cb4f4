"""Black-box optimisers: evolution, and Optuna's samplers."""
