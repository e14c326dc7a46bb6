"""``python -m repedge`` is the ``repedge`` program; so is the script, for Ctrl-C while packages load."""

import sys


def main() -> None:
    """Load the command line and run it."""
    try:
        from repedge.cli import main as run
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
