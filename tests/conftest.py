"""Plugins and fixtures of the whole test run."""

import jaxtyping
import pytest

# The summary of the conformance suite, which has to be known before workers are started.
pytest_plugins = ("tests.conformance.tally",)


@pytest.fixture
def no_annotation_checks():
    """Let a user's wrong input reach our own message, which the type checker would pre-empt.

    Also for transformers' configs, whose constructors take settings beyond their annotations.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
