"""The evaluation family: measuring what a model can do, and what changes it."""
