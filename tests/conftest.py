"""Plugins of the whole test run."""

# The summary of the conformance suite, which has to be known before workers are started.
pytest_plugins = ("tests.conformance.tally",)
