"""The dossier of ntkeval."""
