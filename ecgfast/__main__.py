"""`python -m ecgfast`: the command line."""

import sys

from ecgfast.cli import main

sys.exit(main())
