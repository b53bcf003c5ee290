"""Dossier of ReRoPE and Leaky ReRoPE."""
