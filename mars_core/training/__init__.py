"""Training: the recipe, the loss on answer tokens, calibration runs, the final fine-tune, evaluation."""
