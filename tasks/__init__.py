"""Prefect tasks: one IO boundary each. They unpack configs, call mars_core and store results."""
