"""Data packs and loaders: shipped with packages, generated, or the user's own files."""
