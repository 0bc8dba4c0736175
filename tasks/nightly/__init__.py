"""Nightly runs: what changed, what drifted, which final run is the champion."""
