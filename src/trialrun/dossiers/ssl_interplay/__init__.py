"""The dossier of ssl_interplay."""
