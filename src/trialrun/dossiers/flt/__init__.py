"""The dossier of flt."""
