"""The dossier of svasp."""
