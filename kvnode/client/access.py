"""What a client shows to nodes that ask who it is, and how it knows that they are the nodes it means."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from kvnode.errors import BadRequest, Unavailable
from kvnode.net.tls import trusting


@dataclass(frozen=True, slots=True)
class Access:
    """A token, or '' for none; and who has signed the certificates of https:// URLs, None: whom the system trusts.

    `cert` and `key`: a client's own certificate, with its chain, and its unencrypted key; a token counts before it.
    """

    token: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def session(self, *, connections: int = 100, **settings: Any) -> aiohttp.ClientSession:
        """With the loop running; `connections` at most, 0 for no bound. Raises BadRequest for what cannot be used."""
        headers = {}
        if self.token:
            if not all("!" <= character <= "~" for character in self.token):
                raise BadRequest("The token is ASCII without spaces, as 'kvnode token create' prints it.")
            headers["Authorization"] = f"Bearer {self.token}"
        connector = aiohttp.TCPConnector(limit=connections, ssl=self.context() if self.ca or self.cert else True)
        return aiohttp.ClientSession(auto_decompress=False, headers=headers, connector=connector, **settings)

    def context(self) -> ssl.SSLContext:
        """For a connection to an https:// URL outside of a session. Raises BadRequest for what cannot be used."""
        context = ssl.create_default_context() if self.ca is None else _trusting(self.ca)
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password="")
            except (OSError, ValueError) as e:
                reason = e.strerror if isinstance(e, OSError) and e.strerror else "they are no pair in PEM"
                raise BadRequest(
                    f"The certificate {str(self.cert)!r} and its key cannot be used ({reason}); give both, the key "
                    "unencrypted."
                ) from None
        return context


OPEN = Access()


class Unreachable(Unavailable):
    """No connection was made, so nothing was sent: the host refuses it, has no address, or did not answer in time."""

    code = "unreachable"


class Untrusted(Unreachable):
    """There is a host, and TLS with it fails: its certificate, or what speaks there. Time does not mend that."""


def no_connection(url: str, e: Exception) -> Unreachable:
    """Why there is no connection, and what to do: one sentence."""
    if isinstance(e, aiohttp.ClientConnectorCertificateError):
        why = getattr(e.certificate_error, "verify_message", "") or "it cannot be verified"
        sentence = f"The certificate that {url} shows is not to be trusted ({why}); is --cacert the one that signed it?"
        return Untrusted(sentence)
    if isinstance(e, aiohttp.ClientSSLError):
        why = (getattr(e.os_error, "reason", None) or "it breaks off").replace("_", " ").lower()
        return Untrusted(f"What answers at {url} does not speak TLS as this client does ({why}); is it http://?")
    return Unreachable(f"Nothing answers at {url}; is the node running?")


def _trusting(ca: Path) -> ssl.SSLContext:
    try:
        return trusting(ca)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else "it is no PEM file"
        raise BadRequest(f"The certificate {str(ca)!r} cannot be used ({reason}); give the one that signs.") from None
