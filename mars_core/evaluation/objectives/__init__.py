"""Objectives of the search beside perplexity: metrics of the validation answers, shipped or from a user's package."""
