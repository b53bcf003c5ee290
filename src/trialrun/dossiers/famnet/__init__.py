"""The dossier of famnet."""
