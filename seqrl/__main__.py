"""``python -m seqrl`` is the ``seqrl`` command."""

import sys

from seqrl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
