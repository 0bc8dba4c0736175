"""What a study hands over: model cards, merged checkpoints, and configurations of other fine-tuning tools."""
