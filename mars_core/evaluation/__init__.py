"""Evaluation: the loss on answer tokens, scores in one forward pass, objectives, and scoring by generation."""
