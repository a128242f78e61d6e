"""Tests: each room has its own; `cluster` and `simulation` are what they stand on."""
