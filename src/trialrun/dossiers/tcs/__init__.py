"""The dossier of tcs."""
