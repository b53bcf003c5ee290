"""Learning that must hold in domains it has not seen."""
