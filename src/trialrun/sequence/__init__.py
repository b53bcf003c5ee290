"""Sequence models and predictors."""
