"""`python -m jobagent` is the `jobagent` command."""

import sys

from jobagent.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
