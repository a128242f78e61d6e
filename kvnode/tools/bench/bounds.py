"""How much may be asked for; free of everything that takes time to load. A test compares it with a node's bounds."""

from __future__ import annotations

from typing import Final

CLIENTS_MAX: Final = 1_000  # a process may commonly have 1,024 files open
DURATION_S_MIN: Final = 0.1
DURATION_S_MAX: Final = 3_600.0
REQUESTS_MAX: Final = 1_000_000_000
RATE_MAX: Final = 1_000_000
KEYS_MAX: Final = 1_000_000
VALUE_BYTES_MAX: Final = 1_048_576
BATCH_SIZE_MAX: Final = 1_000
# Every node holds all of it in memory, and the cluster may be in use.
STORED_BYTES_MAX: Final = 1_073_741_824
BATCH_BYTES_MAX: Final = 8 * 1_048_576 - 4_096  # of the body, as a node takes it
ROOT_BYTES_MAX: Final = (
    1_009  # a prefix of 1,000 and the run's name; a key has a number of 7 digits more, of 1,024 bytes
)
