"""The evaluation family."""
