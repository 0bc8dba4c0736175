"""MLflow: runs, datasets, curves, the model registry."""
