"""The dossier of hippo."""
