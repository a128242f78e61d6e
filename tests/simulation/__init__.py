"""The Raft room under a simulated network, clock and disk. A seed decides everything; the same seed fails the same way.

`cluster` has the verbs, `node` is one member on the real core, guard, journal and segments, `network`, `clock` and
`disk` stand in for the machine, `oracle` knows what must never happen, `schedule` draws faults from a seed,
`fuzz` runs many of them, and `stock` is the bare PySyncObj core behind the same verbs.
"""
