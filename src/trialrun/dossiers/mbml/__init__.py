"""Memory-based meta-learning on non-stationary sources: card, notes, specimen and claims."""
