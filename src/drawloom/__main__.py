"""``python -m drawloom`` is ``drawloom``."""

import os
import sys


def main() -> None:
    """The command line. Imported here so that this module costs nothing."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads, engines.md §4.4
    from drawloom.runtime.cli.main import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
