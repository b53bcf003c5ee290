"""Parts that need numpy and the standard library only."""
