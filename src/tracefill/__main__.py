"""python -m tracefill: the command line."""

import sys

from tracefill.cli import main

sys.exit(main())
