"""``python -m repedge`` is the ``repedge`` program."""

from repedge.cli import main

main()
