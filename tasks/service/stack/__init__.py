"""The local stack: Prefect, MLflow and workers as processes of this machine."""
