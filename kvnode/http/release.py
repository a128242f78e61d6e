"""Which aiohttp the HTTP room stands on: `connection.py` and `request.py` reach into private state of its server.

Some 26 private names of `RequestHandler`, `BaseProtocol` and `BaseRequest` are read or set there. With releases before
3.14.4 the HTTP tests fail: names are missing, or an answer does not come. So the releases that are tested are
named (`make test-aiohttp` runs the HTTP tests with the lowest and the highest), and the files that hold the private
names are compared at start: another aiohttp is a reason not to start, not a surprise to find later.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import aiohttp

from kvnode.errors import StartupError

# Those that pyproject.toml allows, the lowest first.
RELEASES: Final = ("3.14.4", "3.14.5")
_FILES: Final = ("base_protocol.py", "web_protocol.py", "web_request.py", "web_server.py")
_SHA256: Final = "82e364f4692e521921b31fd60bf56fd98303cf91d48be4f60f735889802c58a1"  # the same for each of RELEASES


def check_release() -> None:
    """Raises StartupError unless the installed aiohttp is one of RELEASES, and its server what was reviewed."""
    if aiohttp.__version__ not in RELEASES or _digest(Path(aiohttp.__file__).parent) != _SHA256:
        raise StartupError(
            f"The installed aiohttp ({aiohttp.__version__}) is not a release that this kvnode was tested with: "
            f"install one with 'pip install --force-reinstall aiohttp=={RELEASES[-1]}'."
        )


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _FILES:
        digest.update((folder / name).read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()
