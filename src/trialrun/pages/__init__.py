"""The digest site."""
