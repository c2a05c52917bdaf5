"""``python -m drawloom`` is ``drawloom``."""

import sys


def main() -> None:
    """Run the command line, which is imported here so that this module costs nothing."""
    import drawloom.engine  # noqa: F401  (before torch loads)
    from drawloom.runtime.cli.main import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
