"""Certificates: what is loaded of them, what is asked of the other side, and loading them again while a node runs."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kvnode.errors import StartupError

HANDSHAKE_S: Final = 5.0  # for one handshake; silence of that length is no client
SHUTDOWN_S: Final = 1.0  # for the other side to say goodbye to a connection that is closed


class Certificate:
    """A node's certificate for its clients. `context` is the present one: connections keep the one they began with.

    TLS 1.2 at least: balancers and clients of ten years ago have it. `option` is the flag's stem, for messages.
    `client_ca`: who signs the certificates that clients may show; one that shows none comes in without. None: clients
    are asked for none.
    """

    def __init__(self, option: str, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises StartupError."""
        self.option, self.cert, self.key, self.client_ca = option, cert, key, client_ca
        self.context = self._server_context()

    def reload(self) -> None:
        """Loads the files again. Raises StartupError, and then keeps the certificate that was in use."""
        self.context = self._server_context()

    def _server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                raise StartupError(
                    f"--{self.option}-client-ca {str(self.client_ca)!r} cannot be used ({_reason(error)}); give the "
                    "certificate that signs those of clients, in PEM."
                ) from None
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            # Without a password given here, OpenSSL would ask the terminal for the one of an encrypted key.
            context.load_cert_chain(self.cert, self.key, password="")
        except (OSError, ValueError) as error:
            raise StartupError(
                f"--{self.option}-cert {str(self.cert)!r} and --{self.option}-key {str(self.key)!r} cannot be used "
                f"({_reason(error)}); give a certificate (with its chain) and its own unencrypted key, both in PEM."
            ) from None


class MutualCertificate(Certificate):
    """A node's certificate among its peers: either side shows one that `ca` has signed. TLS 1.3 and nothing below.

    A certificate names its node: the dialling side asks for the node's id among the DNS names, as if that were the
    host's (addresses change, names do not), and the accepting side compares it with what the peer says it is. So the
    key of one node does not make another of it, which the secret that all of them share cannot prevent.
    """

    def __init__(self, option: str, cert: Path, key: Path, ca: Path) -> None:
        self.ca = ca
        super().__init__(option, cert, key)
        self.dialling = self._client_context()

    def reload(self) -> None:
        context, dialling = self._server_context(), self._client_context()
        self.context, self.dialling = context, dialling

    def _server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._strict(context)

    def _client_context(self) -> ssl.SSLContext:
        return self._strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def _strict(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._load(context)
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ValueError) as error:
            raise StartupError(
                f"--{self.option}-ca {str(self.ca)!r} cannot be used ({_reason(error)}); give the certificate that "
                "signs all nodes' own, in PEM."
            ) from None
        return context


def names(certificate: Mapping[str, Any] | None, node_id: str) -> bool:
    """Whether a verified certificate (as `SSLSocket.getpeercert` gives it) has this name among its DNS names."""
    alternatives = (certificate or {}).get("subjectAltName", ())
    return any(kind == "DNS" and name.lower() == node_id.lower() for kind, name in alternatives)


def common_name(certificate: Mapping[str, Any] | None) -> str | None:
    """The one common name of a verified certificate; None where there is no certificate, or not one name."""
    parts = [part for group in (certificate or {}).get("subject", ()) for part in group]
    found = [text for kind, text in parts if kind == "commonName"]
    return found[0] if len(found) == 1 else None


def trusting(ca: Path) -> ssl.SSLContext:
    """For a client of nodes whose certificates `ca` has signed. Raises OSError or ValueError for a bad file."""
    context = ssl.create_default_context(cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    said = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    return said or "it is not PEM"
