"""`python -m unlocked`."""

import sys

from unlocked.cli import main

sys.exit(main())
