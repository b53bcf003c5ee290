"""The pretraining family."""
