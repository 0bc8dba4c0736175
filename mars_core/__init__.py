"""The MARS method: data, models, training, laws, search and report. No Prefect, MLflow or network."""
