"""Checkpoint metrics: the Parquet contract between calibration and the laws."""
