"""Retention: find what a policy does not keep, and delete it."""
