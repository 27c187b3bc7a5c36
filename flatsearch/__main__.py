"""`python -m flatsearch` is the command line."""

import sys

from flatsearch.cli import main

if __name__ == "__main__":
    sys.exit(main())
