"""What a study starts from: its data, its base model, its objective, each loaded once per process."""
