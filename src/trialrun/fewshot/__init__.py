"""The fewshot family."""
