"""The report, and what a study comes down to."""
