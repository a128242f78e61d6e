"""One entry for each route and method, in `data.py` or `administration.py`. A test names those that are missing.

HEAD is described by its GET. The statuses of refusals follow from their codes by the error table of `http/app.py`.
"""

from __future__ import annotations

from typing import Final

from kvnode.http.openapi.administration import ADMINISTRATION
from kvnode.http.openapi.data import DATA
from kvnode.http.openapi.operation import Operation

OPERATIONS: Final[dict[str, Operation]] = DATA | ADMINISTRATION
