"""The agent: loads one artifact in a process of its own, times it and answers in JSON lines.

It runs on machines that have no repedge: every file here needs Python 3.9, numpy and the runtime alone,
and imports nothing of repedge but its neighbours. `repedge.devices.pack` makes one file of it.

Commands arrive on stdin, one JSON object a line; answers leave on stdout, each line begun with a mark:
``open`` (artifact, request), ``warm``, ``time`` (runs, prime), ``finish``. When stdin ends, the other
side is gone, and the process ends at once. ``python AGENT request.json`` instead does all four for
``{"artifact": ..., "request": ...}`` and prints the profile.
"""
