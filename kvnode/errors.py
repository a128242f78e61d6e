"""Every way a request can fail, in one tree, grouped by the moment it happens.

The tree has two trunks. A `Definite` failure was not applied and never will be: the caller may send the
request again. An `Indefinite` one may or may not have been applied, and there is no way to tell yet. When in
doubt, raise an `Indefinite` one. `kvnode/http/app.py` holds the one table from `code` to an HTTP status.
"""

from __future__ import annotations


class KvnodeError(Exception):
    """A failure with a stable `code` for programs and a sentence for people."""

    code = "internal"
    outcome = "unknown"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class Definite(KvnodeError):
    """Not applied, and it never will be."""

    outcome = "not_applied"


class Indefinite(KvnodeError):
    """The request may or may not have been applied; there is no way to tell yet."""

    outcome = "unknown"


# --- before anything is proposed: the request itself ---------------------------------------------


class BadRequest(Definite):
    """The request is malformed."""

    code = "bad_request"


class TooLarge(Definite):
    """A key, value or body is over its bound."""

    code = "too_large"


class UnsupportedMediaType(Definite):
    """The body is in an encoding that the node does not take."""

    code = "unsupported_media_type"


class NotFound(Definite):
    """No such path."""

    code = "not_found"


class MethodNotAllowed(Definite):
    """The path exists, the method does not."""

    code = "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


# --- before anything is proposed: who asks -------------------------------------------------------


class Unauthorized(Definite):
    """The request carries no credentials, or none that are valid now."""

    code = "unauthorized"


class Forbidden(Definite):
    """The token's role does not allow this."""

    code = "forbidden"


class TooManyRequests(Definite):
    """The client is over its rate, or there are more connections than there may be; it may try again later."""

    code = "too_many_requests"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# --- at the door: the node cannot take the request now -------------------------------------------


class Unavailable(Definite):
    """The node cannot serve this now; the same request may be sent again, to this node or another."""

    code = "unavailable"


class NoLeader(Unavailable):
    """No leader is known, or the known one could not be reached before the request left this node."""

    code = "no_leader"


class NotLeader(Unavailable):
    """This node was asked to do the leader's work and is not the leader."""

    code = "not_leader"


class Unverified(Unavailable):
    """The leader could not confirm its leadership with a majority in time; nothing was read."""

    code = "unverified"


class Overloaded(Unavailable):
    """A queue is at its bound."""

    code = "overloaded"


class ShuttingDown(Unavailable):
    """The node is draining or stopping."""

    code = "shutting_down"


class Starting(Unavailable):
    """The node has not finished starting."""

    code = "starting"


class DiskFull(Definite):
    """The journal cannot take another write until space returns."""

    code = "disk_full"


# --- by the state machine: understood, agreed upon, and refused ----------------------------------


class KeyNotFound(Definite):
    """The key does not exist."""

    code = "key_not_found"
    applied_lag: int | None = None  # of the stale read that did not find it


class LeaseNotFound(Definite):
    """The lease does not exist, or not any more."""

    code = "lease_not_found"
    applied_lag: int | None = None  # as for a key


class TooManyLeases(Definite):
    """There are as many leases as there may be."""

    code = "too_many_leases"


class TokenNotFound(Definite):
    """There is no such access token, or not any more."""

    code = "token_not_found"


class TooManyTokens(Definite):
    """There are as many access tokens as there may be."""

    code = "too_many_tokens"


class PreconditionFailed(Definite):
    """The key is not in the state that the request asked for.

    `current_revision` is the key's `mod_revision`, or None where the key does not exist.
    """

    code = "precondition_failed"

    def __init__(self, message: str, current_revision: int | None) -> None:
        super().__init__(message)
        self.current_revision = current_revision


class IdempotencyKeyReused(BadRequest):
    """The idempotency key was used for another request, and that request's outcome stands."""

    code = "idempotency_key_reused"


class Compacted(Definite):
    """What happened from the revision asked for is forgotten; `oldest_revision` is the first that is still known."""

    code = "compacted"

    def __init__(self, message: str, oldest_revision: int | None = None) -> None:
        super().__init__(message)
        self.oldest_revision = oldest_revision


class Conflict(Definite):
    """An administrative request does not fit the cluster's present state."""

    code = "conflict"


class LastReadyNode(Conflict):
    """No other node of the cluster is ready to serve clients."""

    code = "last_ready_node"


# --- after the proposal has left: the answer did not come in time --------------------------------


class OutcomeUnknown(Indefinite):
    """The write was proposed and its fate was not learned before the deadline."""

    code = "outcome_unknown"


# --- at start-up: the node does not start --------------------------------------------------------


class StartupError(KvnodeError):
    """The node cannot start as it was asked to; the message says what to change."""

    code = "startup"
    outcome = "not_applied"


# --- never at a user: the node must stop rather than go on wrong ---------------------------------


class Fatal(KvnodeError):
    """Safety can no longer be kept; the process stops with this sentence."""

    code = "fatal"
