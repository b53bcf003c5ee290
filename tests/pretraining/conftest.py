import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Leave arguments of the wrong type to the code's own words."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
