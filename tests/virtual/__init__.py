"""Whole nodes, and the client, in virtual time: real code from a call of the client to the bytes on the disk.

`world` is time and what happens in it, `loop` an asyncio event loop for each process on it, `threads` their worker
threads, `network` the connections between them and `disk` what survives a process. `cluster` runs real nodes and
real clients there, `workload` is what clients do, `judge` knows what must never happen, `schedule` draws faults from
a seed, and `fuzz` runs many of those.
"""
