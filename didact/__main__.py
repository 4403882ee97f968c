"""`python -m didact` is `didact`."""

import sys

from didact.cli import main

sys.exit(main())
