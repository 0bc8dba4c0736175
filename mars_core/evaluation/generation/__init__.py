"""Scoring by generation: greedy answers, letter match for multiple choice, exact match else, accuracy by group."""
