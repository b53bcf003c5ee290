"""Attention for long contexts and cheap caches."""
