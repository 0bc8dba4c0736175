"""Shipped baselines, one YAML file each."""
