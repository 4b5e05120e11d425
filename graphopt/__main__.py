"""``python -m graphopt`` is the command line."""

import sys

from graphopt.cli import main

sys.exit(main())
