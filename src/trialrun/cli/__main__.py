"""Run the command line with ``python -m trialrun.cli``."""

from trialrun.cli import main

main()
