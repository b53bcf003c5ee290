"""The application: which command lies where, and how every error ends."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError, Parameter

from trialrun import __version__
from trialrun.core.errors import TrialrunError

INTERRUPTED = 130
DEFECT = 70
_COMMANDS = {
    "list": ("trialrun.cli.list:list_methods", "List every method and its claims."),
    "show": ("trialrun.cli.show:show", "Show a method's card, verdicts so far and notes."),
    "check": ("trialrun.cli.check:check", "Put methods on trial and print each claim's table."),
    "report": ("trialrun.cli.report:report", "Build one HTML page from all records."),
    "data": ("trialrun.cli.data:app", "List and pull the material that checks need."),
    "openness": (
        "trialrun.cli.openness:openness",
        "Grade a model release by the Model Openness Framework.",
    ),
    "index": ("trialrun.cli.index:index", "Encode a folder of pictures, to search it."),
    "query": ("trialrun.cli.query:query", 'Search it: "like this picture, but a drawing of *".'),
    "new": ("trialrun.cli.new:new", "Scaffold a method in a source checkout."),
}


def build_app() -> App:
    """Return the command-line application; its commands are imported when called."""
    app = App(
        name="trialrun",
        help="Put papers on trial, by running them.",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative=()),
    )
    for name, (where, what) in _COMMANDS.items():
        app.command(where, name=name, help=what)
    return app


def _stop(sentence: str, code: int) -> NoReturn:
    print(f"trialrun: {sentence}", file=sys.stderr)
    raise SystemExit(code)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _of_files(error: OSError) -> str:
    if error.strerror and error.filename:
        return (
            f"{error.filename} could not be read or written ({error.strerror}): "
            "make room, or choose another place"
        )
    return _one_line(error)


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Every error a user may cause ends in one sentence on the error stream; ``--debug`` shows the
    traceback instead.
    """
    words = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    # The network stays off unless a command asks for it.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        code = build_app()(words, exit_on_error=False, print_error=False)
    except KeyboardInterrupt as error:
        again = shlex.join(["trialrun", *words, *(["--resume"] if "--resume" not in words else [])])
        hint = f": {error}; go on with: {again}" if str(error) else ""
        _stop(f"interrupted{hint}", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except (TrialrunError, CycloptsError, OSError) as error:
        if debug:
            raise
        sentence = _of_files(error) if isinstance(error, OSError) else _one_line(error)
        _stop(sentence, getattr(error, "exit_code", 2))
    except Exception as error:  # an uncaught error would end in code 1, which says "does not hold"
        if debug:
            raise
        what = f"{type(error).__name__}: {_one_line(error)}"
        _stop(f"a defect of trialrun, {what}: --debug shows where", DEFECT)
    raise SystemExit(code if isinstance(code, int) else 0)
