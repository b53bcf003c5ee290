"""Optional packages, fetched where they are used."""

from importlib import import_module
from types import ModuleType

from trialrun.core.errors import MissingExtra


def need(module: str, *, extra: str) -> ModuleType:
    """Import ``module`` or say which extra brings it.

    Raises
    ------
    MissingExtra
        If the package is not installed; the sentence holds the command that installs it.

    Examples
    --------
    >>> need("json", extra="data").dumps([1])
    '[1]'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtra(
            f"{module} is needed here and is not installed: run pip install 'trialrun[{extra}]'"
        ) from error
