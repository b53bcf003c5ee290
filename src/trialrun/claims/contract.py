"""What a dossier's ``claim.py`` offers, and what the engine hands to it.

A dossier's ``claim.py`` defines one object named ``TRIAL``. It measures and does not judge: which
arm is the method, which the rival and which the control, and the rule between them, stand in
the card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Size of a run. A dossier subclasses it with the settings its claims need.

    Parameters
    ----------
    seeds : int
        Number of seeds.
    first_seed : int
        A run uses seeds ``first_seed``, ``first_seed + 1``, ... A budget whose seeds nobody has
        looked at while the check was built makes its verdict confirmatory.
    unit_seconds : float
        Limit on the wall-clock time of one unit, in seconds.
    unit_megabytes : int
        Limit on the growth of one unit's resident memory, in MB (10**6 bytes).
    """

    seeds: int
    first_seed: int = 0
    unit_seconds: float = 600.0
    unit_megabytes: int = 4000

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Return the seeds of a run, in order."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))


FILE_OPTIONS = ("metadata",)
"""Options of ``--on`` whose value is a file, not a name."""


@dataclass(frozen=True)
class On:
    """The user's own material: what ``--on`` named, and the options that came with it.

    ``kind`` is the card's word for it (``table``, ``symbols``, ...); ``options`` holds the text
    of ``--target``, ``--domain``, ``--metadata`` and the like.
    """

    kind: str
    path: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Context:
    """Everything an arm may depend on.

    Parameters
    ----------
    budget : Budget
        The settings object of the budget asked for.
    seed : int
        The unit's seed. Arms with the same seed must see the same material (paired).
    device : str
        ``cpu`` or ``cuda``.
    on : On or None
        The user's own material in place of the shipped one.
    model : str or None
        A hub id, a folder, or the name of a pulled pack, from ``--model``.
    prepared_root : Path
        Where `prepared` finds what the preparation steps left.
    """

    budget: Budget
    seed: int
    device: str = "cpu"
    on: On | None = None
    model: str | None = None
    prepared_root: Path = Path()

    def prepared(self, name: str) -> Path:
        """Return the folder that preparation step ``name`` filled for this seed."""
        return self.prepared_root / f"{name}-{self.seed}"


@dataclass(frozen=True)
class Measurement:
    """What one arm measured at one seed.

    Parameters
    ----------
    points : mapping of str to float
        One number per condition, all in the rule's unit. An arm with a single number uses
        `Measurement.of`. Arms of one claim share the names of their points.
    n : int
        Number of items scored.
    extra : mapping of str to float
        Numbers worth keeping beside the judged ones (worst domain, seconds per step).
    """

    points: Mapping[str, float]
    n: int
    extra: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, value: float, *, n: int, **extra: float) -> Measurement:
        """Make a measurement of one number."""
        return cls({"value": float(value)}, n, extra)


Arm = Callable[[Context], Measurement]
Preparation = Callable[[Context, Path], None]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The measuring half of a dossier.

    Parameters
    ----------
    budgets : mapping of str to Budget
        ``smoke``, ``quick`` and ``full`` at least.
    arms : mapping of claim id to mapping of arm name to Arm
        Every arm the card names, and no other claim ids than the card's. Arms are module-level
        functions or `functools.partial` objects of them, so that workers can load them.
    prepare : mapping of str to Preparation
        Steps shared by several arms of one seed, such as training a model. Each is called once
        per seed with an empty folder to fill; its files appear under `Context.prepared`.
    needs : mapping of claim id (or ``claim/arm``) to names of preparation steps
    resplit : callable or None
        For material of the user's own: called with the `Context`, returns the rule's ``resplit``,
        the ratio of held-out to training units where seeds split one table anew.
    check_on : callable or None
        Called once, before any unit, with the user's `Context`; raises ``UsageError`` when the
        material won't do.
    keep : callable or None
        Called once after a run on the user's own material with the `Context` and a folder; fits
        the method on all of it, saves it there and returns the Python lines that load it.
    """

    budgets: Mapping[str, Budget]
    arms: Mapping[str, Mapping[str, Arm]]
    prepare: Mapping[str, Preparation] = field(default_factory=dict)
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    resplit: Callable[[Context], float] | None = None
    check_on: Callable[[Context], None] | None = None
    keep: Callable[[Context, Path], str] | None = None
