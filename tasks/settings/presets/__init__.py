"""Shipped configurations: studies as the paper ran them, and its baselines."""
