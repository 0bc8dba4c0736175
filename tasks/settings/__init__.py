"""What users say: the study's configuration, shipped presets and baselines, accelerate's configuration."""
