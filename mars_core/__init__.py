"""The MARS method: data, models, training, laws, search and report. No Prefect, MLflow or network."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mars-rank-search")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
