"""Final runs: train a pair or a baseline at the full budget, score it, compare."""
