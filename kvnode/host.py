"""What a node takes from its machine beside its event loop: handed in, so that a simulation can hand in its own.

Deadlines and timers of asyncio code go by the loop's clock, which is the same monotonic one.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any


@dataclass(frozen=True, slots=True)
class Host:
    """`clock` is monotonic and `sleep` a worker thread's, both in seconds; `token_bytes` cannot be guessed.

    `draw` is for times alone. The last four are the constructors of the standard library's threads and of what they
    wait for each other with.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    token_bytes: Callable[[int], bytes] = os.urandom
    draw: random.Random = field(default_factory=random.Random)
    thread: Callable[..., threading.Thread] = threading.Thread
    event: Callable[[], threading.Event] = threading.Event
    lock: Callable[[], threading.Lock] = threading.Lock
    queue: Callable[[], SimpleQueue[Any]] = SimpleQueue
