"""Run the command line with ``python -m trialrun``."""

from trialrun.cli import main

main()
