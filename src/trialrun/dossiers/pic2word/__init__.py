"""The dossier of pic2word."""
