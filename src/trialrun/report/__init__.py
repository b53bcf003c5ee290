"""What was measured, shown: text tables, plots and one self-contained page."""
