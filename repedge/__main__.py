"""``python -m repedge`` is the ``repedge`` program; so is the script, for signals while packages load."""

import sys

from repedge import interrupts


def main() -> None:
    """Load the command line and run it."""
    interrupts.install()
    try:
        from repedge.cli import main as run

        try:
            run()
        finally:
            interrupts.finished()
    except KeyboardInterrupt:
        print(interrupts.MESSAGE, file=sys.stderr)
        sys.exit(interrupts.exit_code())


if __name__ == "__main__":
    main()
