"""Certificates of a cluster, signed by an authority that lasts as long as the test."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import trustme


class Authority:
    """Signs certificates into `folder`: `ca.pem`, and `NAME.pem` with `NAME-key.pem`."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._ca.cert_pem.write_to_path(folder / "ca.pem")

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def sign(
        self, name: str, alternatives: Sequence[str] = ("127.0.0.1", "127.0.0.2"), common_name: str | None = None
    ) -> None:
        """A certificate for the DNS name, and for these; takes the place of the one before."""
        certificate = self._ca.issue_cert(name, *alternatives, common_name=common_name)
        # Each file is whole at any moment: a node may read them now.
        for path, pem in (
            (self.folder / f"{name}-key.pem", certificate.private_key_pem.bytes()),
            (self.folder / f"{name}.pem", b"".join(each.bytes() for each in certificate.cert_chain_pems)),
        ):
            part = path.with_suffix(".part")
            part.write_bytes(pem)
            part.replace(path)

    def client(self, name: str | None = None) -> ssl.SSLContext:
        """What trusts this authority, and shows the certificate of `name`."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if name is not None:
            context.check_hostname = False  # a peer is asked for by its name, whatever its address
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}-key.pem")
        return context
