"""Read-only answers from what a study left on disk: SQL, the ablation table, its sentences and the status.

Needs neither torch nor Ray, so that a table is printed in the time of reading a few files.
"""
