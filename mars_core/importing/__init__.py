"""Runs that were made elsewhere: their table read and checked, laws fitted to it, a pair chosen. Imports no torch."""

from mars_core.importing.analysis import ImportedLaws, Question, analyse
from mars_core.importing.names import rename_columns
from mars_core.importing.rows import BadRows, ImportedRuns, Problem, Sizes, read_runs

__all__ = [
    "BadRows",
    "ImportedLaws",
    "ImportedRuns",
    "Problem",
    "Question",
    "Sizes",
    "analyse",
    "read_runs",
    "rename_columns",
]
