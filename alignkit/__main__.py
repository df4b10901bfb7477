"""Command line: see `alignkit.report.commands`."""

import sys

from alignkit.report.commands import main

if __name__ == "__main__":
    sys.exit(main())
