"""Run a recipe: ``accelerate launch -m trialrun.pretraining.train recipe.yaml``.

One processor, many, and many machines are the same command; ``accelerate config`` says which. A run
that was stopped goes on from its newest checkpoint when the command is given again; machines must
share the folders of the sources and of the run. Every process holds the whole model (DDP). Follows
what is public of zhao2024moxin's recipe; examples/moxin_recipe.py shows one in small.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from trialrun.core.errors import TrialrunError, UsageError

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
from accelerate import Accelerator
from accelerate.utils import DistributedType

from trialrun.pretraining._recipe import Recipe, read_recipe
from trialrun.pretraining._training import Step, train

_TESTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def run_recipe(
    recipe: Recipe, *, cpu: bool = False, report: Callable[[Step], None] | None = None
) -> list[Step]:
    """Train what a recipe says, on the processes that ``accelerate launch`` started.

    Parameters
    ----------
    recipe : Recipe
    cpu : bool
        Leave accelerators alone.
    report : callable or None
        Called with each step on the main process.

    Raises
    ------
    UsageError
        If the recipe and its files do not fit together, or the model is to be spread over
        processes in a way that these checkpoints do not serve (FSDP, DeepSpeed, tensor parallel).
    """
    accelerator = Accelerator(cpu=cpu, mixed_precision=recipe.precision)
    if accelerator.distributed_type not in _TESTED:
        raise UsageError(
            f"the run must keep a whole copy of the model on each process (DDP), got "
            f"{accelerator.distributed_type.value}: choose multi-GPU without FSDP or DeepSpeed in "
            f"accelerate config"
        )
    model = recipe.model.make(seed=recipe.seed)
    recipe.check_vocabulary(model)
    return train(
        model,
        recipe.phases,
        recipe.open_sources(),
        seed=recipe.seed,
        optimiser=recipe.optimiser,
        saving=recipe.saving,
        micro_batch=recipe.micro_batch,
        vocabulary=recipe.open_vocabulary(),
        accelerator=accelerator,
        report=report,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run the recipe and return the exit code (2 for a bad recipe)."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m trialrun.pretraining.train",
        description="Train what a recipe says; give the command again to go on after a stop.",
    )
    parser.add_argument("recipe", help="a YAML file")
    parser.add_argument("--cpu", action="store_true", help="leave accelerators alone")
    parser.add_argument("--every", type=int, default=10, help="print every so many steps")
    given = parser.parse_args(arguments)

    def show(step: Step) -> None:
        if step.step % max(1, given.every) == 0:
            print(
                f"{step.phase}  step {step.step}  loss {step.loss:.4f}  rate {step.rate:.3g}  "
                f"tokens {step.tokens}  {step.seconds:.2f} s",
                flush=True,
            )

    try:
        run_recipe(read_recipe(given.recipe), cpu=given.cpu, report=show)
    except TrialrunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
