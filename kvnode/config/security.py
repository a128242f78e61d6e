"""What the configuration says of who may do what: secrets, certificates, limits, and what is needed off loopback."""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvnode.config import values
from kvnode.config.options import Settings
from kvnode.config.values import HostPort, Malformed
from kvnode.errors import StartupError
from kvnode.net.proxies import Network, Proxies

SECRET_VARIABLE: Final = "KVNODE_CLUSTER_SECRET"
TOKEN_VARIABLE: Final = "KVNODE_TOKEN"  # what the client commands read as well
SECRETS: Final = {  # options that name a secret's file, and the variables that may hold the secret itself
    "cluster-secret-file": SECRET_VARIABLE,
    "token-file": TOKEN_VARIABLE,
    "session-key-file": "KVNODE_SESSION_KEY",
}
SECRET_BYTES_MIN: Final = 16  # 128 bits, if every byte is random; `openssl rand -hex 32` is comfortably over it
SECRET_BYTES_MAX: Final = 4_096
TOKEN_CHARS_MAX: Final = 512  # it travels in a header line with each request
PROXIES_MAX: Final = 64
RATE_MAX: Final = 1_000_000
CONNECTIONS_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Security:
    """`token` '': HTTP asks for none. Certificates are paths here; `tls.py` loads them."""

    secret: bytes = field(repr=False)
    token: str = field(repr=False)
    insecure: bool
    tls: tuple[Path, Path] | None
    tls_client_ca: Path | None
    tls_ca: Path | None
    token_file: Path | None  # where the token stands, to be read again on SIGHUP; None where the environment has it
    raft_tls: tuple[Path, Path, Path] | None
    peers_0_1: bool
    probes: HostPort | None
    proxies: Proxies | None
    rate_limit: int
    connections_max: int
    connections_per_client: int
    warnings: tuple[str, ...]
    # (option, file) of what secrets were read from, for `refuse_public`, and of the certificates' keys. Where a secret
    # stands is no part of what it is: nodes that were given the same one in two ways have the same configuration.
    secret_files: tuple[tuple[str, Path], ...] = field(default=(), compare=False)
    key_files: tuple[tuple[str, Path], ...] = field(default=(), compare=False)


def load(given: Settings, environ: Mapping[str, str], http: HostPort, raft: HostPort) -> Security:
    """Raises StartupError where a node would be open to anybody, or where something does not fit together."""
    secret = secret_of(given, environ, "cluster-secret-file", SECRET_VARIABLE, "cluster secret")
    token = _token(secret_of(given, environ, "token-file", TOKEN_VARIABLE, "token"))
    insecure = given.parse("insecure", values.switch)
    _check_exposure(given, http, raft, secret, token, insecure)
    tls, raft_tls = _files(given, "tls-cert", "tls-key"), _files(given, "raft-cert", "raft-key", "raft-ca")
    tls_ca, tls_client_ca = given.get("tls-ca"), given.get("tls-client-ca")
    if tls_client_ca is not None and tls is None:
        raise tls_client_ca.refused("clients show certificates over TLS alone; give --tls-cert and --tls-key as well")
    if tls_client_ca is not None and not token:
        raise tls_client_ca.refused(
            "a certificate is as good as the token that has its name, and this node asks for no tokens; give "
            "--token-file as well"
        )
    probes = given.parse("probes", values.host_port)
    if probes in (http, raft):
        raise given.refused("probes", "probes need a port that nothing else has; choose another, or leave it out")
    peers_0_1 = given.parse("allow-old-peers", values.switch)
    warnings = []
    if not (values.is_loopback(http[0]) or tls or insecure):
        warnings.append("HTTP off loopback without TLS: tokens and values can be read on the way; give --tls-cert.")
    if not (values.is_loopback(raft[0]) or raft_tls):
        warnings.append(
            "Raft off loopback without --raft-cert: values and the hashes of tokens can be read on the way between "
            "nodes, though not altered; give --raft-cert, --raft-key and --raft-ca."
        )
    if peers_0_1:
        warnings.append(
            "--allow-old-peers: nothing protects what this node and nodes of kvnode 0.1 send each other; leave it out "
            "as soon as all members are upgraded."
        )
    return Security(
        secret=secret,
        token=token,
        insecure=insecure,
        tls=None if tls is None else (tls[0], tls[1]),
        tls_client_ca=Path(tls_client_ca.text) if tls_client_ca else None,
        tls_ca=Path(tls_ca.text) if tls_ca else None,
        secret_files=tuple(
            (option, file)
            for option, variable in SECRETS.items()
            if (file := _file_of(given, environ, option, variable)) is not None
        ),
        key_files=tuple(
            (option, Path(setting.text))
            for option in ("tls-key", "raft-key")
            if (setting := given.get(option)) is not None
        ),
        token_file=_file_of(given, environ, "token-file", TOKEN_VARIABLE) if token else None,
        raft_tls=None if raft_tls is None else (raft_tls[0], raft_tls[1], raft_tls[2]),
        peers_0_1=peers_0_1,
        probes=probes,
        proxies=_proxies(given),
        rate_limit=given.parse("rate-limit", count, RATE_MAX) or 0,
        connections_max=given.parse("max-connections", count, CONNECTIONS_MAX),
        connections_per_client=given.parse("max-connections-per-client", count, CONNECTIONS_MAX) or 0,
        warnings=tuple(warnings),
    )


def refuse_public(option: str, file: Path) -> None:
    """Raises StartupError for a secret that every user of the machine can read, as sshd does for its keys.

    A group may: Kubernetes hands secrets to a container by its fsGroup. A pipe has no readers but the one who opens it.
    """
    if is_public(file):
        raise StartupError(
            f"The file {str(file)!r} of --{option} holds a secret, and every user of this machine can read it: "
            f"chmod 600 {file}."
        )


def is_public(file: Path) -> bool:
    """Whether everybody can read it. False for what cannot be looked at: to read it fails with a better sentence."""
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)


def secret_of(given: Settings, environ: Mapping[str, str], option: str, variable: str, what: str) -> bytes:
    """The secret, empty where none is given. A flag beats the variable; the variable beats the file's entry."""
    setting = given.get(option)
    text = environ.get(variable, "")
    if setting and setting.source == variable + "_FILE" and text:
        raise setting.refused(f"{variable} is set as well; keep one of the two")
    if setting and _file_of(given, environ, option, variable):
        try:
            with open(setting.text, "rb") as f:
                secret = f.read(SECRET_BYTES_MAX + 3).rstrip(b"\r\n")
        except OSError as e:
            raise setting.refused(f"the file cannot be read ({e.strerror}); give a readable one") from None
        except ValueError:
            raise setting.refused("this cannot be a file's name; give a readable file") from None
        where = f"the file {setting.text!r} of --{option}"
    elif text:
        secret, where = text.encode("utf-8", "surrogateescape").rstrip(b"\r\n"), variable
    else:
        return b""
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise StartupError(
            f"The {what} in {where} must be {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes long, "
            f"this one has {len(secret)}; make one with: openssl rand -hex 32."
        )
    return secret


def _file_of(given: Settings, environ: Mapping[str, str], option: str, variable: str) -> Path | None:
    """The file that the secret is read from, None where the variable has it or there is none."""
    setting = given.get(option)
    return Path(setting.text) if setting and (setting.source is None or not environ.get(variable)) else None


def token_in(file: Path) -> str:
    """What --token-file holds now. Raises StartupError for a file that a node would not start with."""
    return _token(secret_of(Settings({"token-file": str(file)}, {}, None), {}, "token-file", TOKEN_VARIABLE, "token"))


def _token(secret: bytes) -> str:
    text = secret.decode("ascii", "replace")
    if len(text) > TOKEN_CHARS_MAX or not all("!" <= character <= "~" for character in text):
        raise StartupError(
            f"The token must be up to {TOKEN_CHARS_MAX} ASCII characters without spaces, as it stands in a header "
            "line; make one with: openssl rand -hex 32."
        )
    return text


def _check_exposure(given: Settings, http: HostPort, raft: HostPort, secret: bytes, token: str, insecure: bool) -> None:
    """Off loopback, Raft must know its peers, and HTTP its clients, unless open HTTP was asked for."""
    if not secret and not values.is_loopback(raft[0]):
        raise given.refused(
            "raft", f"Raft off loopback needs a shared secret; give --cluster-secret-file FILE or {SECRET_VARIABLE}"
        )
    if not (insecure or token) and not values.is_loopback(http[0]):
        raise given.refused(
            "http",
            "HTTP that asks for no credentials stays on loopback; give --token-file FILE, or --insecure to let "
            "anyone in reach use it",
        )
    if http == raft:
        raise given.refused("raft", "HTTP and Raft cannot share an address; give each its own port")


def _files(given: Settings, *options: str) -> tuple[Path, ...] | None:
    """All of these, or none."""
    found = [given.get(option) for option in options]
    paths = tuple(Path(setting.text) for setting in found if setting is not None)
    if 0 < len(paths) < len(options):
        missing = next(option for option, setting in zip(options, found, strict=True) if setting is None)
        present = next(option for option, setting in zip(options, found, strict=True) if setting is not None)
        raise given.refused(present, f"it is of use only together with --{missing}; give both")
    return paths or None


def _proxies(given: Settings) -> Proxies | None:
    networks = given.parse("trusted-proxies", _networks)
    prefaced = given.parse("proxy-protocol", values.switch)
    if prefaced and not networks:
        raise given.refused("proxy-protocol", "name the balancers that speak it with --trusted-proxies")
    return Proxies(networks, prefaced) if networks else None


def _networks(text: str) -> tuple[Network, ...]:
    try:
        found = tuple(ipaddress.ip_network(each.strip()) for each in text.split(","))
    except ValueError:
        raise Malformed("write addresses or networks, such as 10.0.0.7,192.168.1.0/24") from None
    if len(found) > PROXIES_MAX:
        raise Malformed(f"write {PROXIES_MAX} networks at most")
    return found


def count(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise Malformed(f"write a number from 1 to {most}")
    return int(text)
