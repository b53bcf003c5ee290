"""Papers on trial, by running them.

Import the part you need from its family, for example
``from trialrun.sequence.mbml import PTW``. Nothing heavy is loaded here.
"""

__version__ = "0.1.0"
