"""Small faults put into the source on purpose, and the command that must find each: `python -m tests.mutants`."""
