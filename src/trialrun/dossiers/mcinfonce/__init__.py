"""The dossier of mcinfonce."""
