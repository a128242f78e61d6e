"""Measurements that the documentation quotes: each is a make target that prints a table and writes a page in docs/."""
