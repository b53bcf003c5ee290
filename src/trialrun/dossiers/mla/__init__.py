"""The dossier of mla."""
