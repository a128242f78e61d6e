from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.http.serving import Served, serve
from tests.http.single import SingleGroup


@pytest.fixture
async def node() -> AsyncIterator[Served]:
    """A leader that is ready, with its leader probe wired."""
    async with serve(SingleGroup()) as served:
        yield served
