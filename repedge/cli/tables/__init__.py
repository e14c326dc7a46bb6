"""What the command line shows to people: tables, progress, hints."""
