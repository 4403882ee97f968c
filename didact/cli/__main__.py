"""`python -m didact.cli`."""

import sys

from didact.cli import main

sys.exit(main())
