"""Runs that exist already, read from a table or from MLflow, and the laws fitted to them."""
