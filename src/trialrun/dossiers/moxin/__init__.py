"""The dossier of moxin."""
