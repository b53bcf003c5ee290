"""Evidence, one folder per method: card, notes, specimen, claim and records."""
