"""Figures of the report, one file each, drawn with matplotlib's object-oriented interface."""
