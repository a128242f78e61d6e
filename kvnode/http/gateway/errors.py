"""Errors as etcd's gateway says them: `{"error":TEXT,"code":N,"message":TEXT}` under the HTTP status of the gRPC code.

Clients match on etcd's texts, so those are etcd's own where it has one for the case. Each error of this project has its
place in one table; a definite one never gets a code that means doubt, nor the other way round: what may have happened
is etcd's `context deadline exceeded`, code 2.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from kvnode.errors import (
    BadRequest,
    Compacted,
    Definite,
    DiskFull,
    Forbidden,
    Indefinite,
    KvnodeError,
    LeaseNotFound,
    MethodNotAllowed,
    NoLeader,
    NotFound,
    NotLeader,
    Overloaded,
    ShuttingDown,
    Starting,
    TooLarge,
    TooManyLeases,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from kvnode.http.answer import JSON_TYPE, Answer, json_bytes
from kvnode.http.credentials import admission_of

# gRPC's codes (google.golang.org/grpc/codes) and the HTTP status that grpc-gateway has for each.
UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
NOT_FOUND: Final = 5
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
OUT_OF_RANGE: Final = 11
UNIMPLEMENTED: Final = 12
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16
HTTP_STATUS: Final = {
    UNKNOWN: 500, INVALID_ARGUMENT: 400, NOT_FOUND: 404, PERMISSION_DENIED: 403, RESOURCE_EXHAUSTED: 429,
    FAILED_PRECONDITION: 400, OUT_OF_RANGE: 400, UNIMPLEMENTED: 501, UNAVAILABLE: 503, UNAUTHENTICATED: 401,
}  # fmt: skip

# etcd's texts (api/v3rpc/rpctypes).
NO_KEY: Final = "etcdserver: key is not provided"
KEY_NOT_FOUND: Final = "etcdserver: key not found"
VALUE_GIVEN: Final = "etcdserver: value is provided"
LEASE_GIVEN: Final = "etcdserver: lease is provided"
DUPLICATE_KEY: Final = "etcdserver: duplicate key given in txn request"
TOO_MANY_OPERATIONS: Final = "etcdserver: too many operations in txn request"
TOO_LARGE: Final = "etcdserver: request is too large"
LEASE_NOT_FOUND: Final = "etcdserver: requested lease not found"
LEASE_EXISTS: Final = "etcdserver: lease already exists"
TTL_TOO_LARGE: Final = "etcdserver: too large lease TTL"
COMPACTED: Final = "etcdserver: mvcc: required revision has been compacted"
FUTURE_REVISION: Final = "etcdserver: mvcc: required revision is a future revision"
NO_SPACE: Final = "etcdserver: mvcc: database space exceeded"
NO_LEADER: Final = "etcdserver: no leader"
TIMED_OUT: Final = "etcdserver: request timed out"
STOPPED: Final = "etcdserver: server stopped"
IN_DOUBT: Final = "context deadline exceeded"
NO_USER: Final = "etcdserver: user name is empty"
BAD_PASSWORD: Final = "etcdserver: authentication failed, invalid user ID or password"
BAD_TOKEN: Final = "etcdserver: invalid auth token"
DENIED: Final = "etcdserver: permission denied"
AUTH_OFF: Final = "etcdserver: authentication is not enabled"


class Status(Definite):
    """A refusal with a gRPC code and a text of etcd's, or a sentence where etcd has none."""

    code = "bad_request"  # where an answer is made without this room

    def __init__(self, grpc_code: int, message: str) -> None:
        super().__init__(message)
        self.grpc_code = grpc_code


def is_gateway(path: str) -> bool:
    """Whether failures under this path are etcd's to word."""
    return path.startswith(("/v3/", "/v3beta/"))


def failure(request: web.BaseRequest, error: KvnodeError) -> Answer:
    """The answer of an error to a request whose answer is one message."""
    code, message = grpc_status(request, error)
    status, headers = _http(code, error)
    return Answer(status, headers, json_bytes({"error": message, "code": code, "message": message}))


def stream_failure(request: web.BaseRequest, error: KvnodeError) -> Answer:
    """The same where the answer is a stream of messages, and nothing of it was sent."""
    code, message = grpc_status(request, error)
    status, headers = _http(code, error)
    return Answer(status, headers, stream_error(code, message))


def stream_error(code: int, message: str) -> bytes:
    """The last message of a stream that fails."""
    status = HTTP_STATUS[code]
    inner = {"grpc_code": code, "http_code": status, "message": message, "http_status": HTTPStatus(status).phrase}
    return json_bytes({"error": inner})


def grpc_status(request: web.BaseRequest, error: KvnodeError) -> tuple[int, str]:
    """(gRPC code, text) of an error to this request."""
    if isinstance(error, Status):
        return error.grpc_code, error.message
    if isinstance(error, Unauthorized):
        return (UNAUTHENTICATED, BAD_TOKEN) if hdrs.AUTHORIZATION in request.headers else (INVALID_ARGUMENT, NO_USER)
    if isinstance(error, Forbidden) and admission_of(request) is None:
        return PERMISSION_DENIED, error.message  # of no right: a foreign page, or a name that is not this node's
    for kind, code, text in _TABLE:
        if isinstance(error, kind):
            return code, text or error.message
    return (UNKNOWN, IN_DOUBT) if isinstance(error, Indefinite) else (INVALID_ARGUMENT, error.message)


# The first kind that fits. Without a text: the error's own sentence.
_TABLE: Final[tuple[tuple[type[KvnodeError], int, str], ...]] = (
    (TooLarge, INVALID_ARGUMENT, TOO_LARGE),
    (BadRequest, INVALID_ARGUMENT, ""),
    (MethodNotAllowed, UNIMPLEMENTED, "Method Not Allowed"),
    (NotFound, NOT_FOUND, "Not Found"),
    (Forbidden, PERMISSION_DENIED, DENIED),
    (TooManyRequests, RESOURCE_EXHAUSTED, ""),
    (TooManyLeases, RESOURCE_EXHAUSTED, ""),
    (DiskFull, RESOURCE_EXHAUSTED, NO_SPACE),
    (LeaseNotFound, NOT_FOUND, LEASE_NOT_FOUND),
    (Compacted, OUT_OF_RANGE, COMPACTED),
    (NoLeader, UNAVAILABLE, NO_LEADER),
    (NotLeader, UNAVAILABLE, NO_LEADER),
    (ShuttingDown, UNAVAILABLE, STOPPED),
    (Starting, UNAVAILABLE, ""),
    (Overloaded, UNAVAILABLE, ""),
    (Unavailable, UNAVAILABLE, TIMED_OUT),
)


def _http(code: int, error: KvnodeError) -> tuple[int, bytes]:
    """The HTTP status and header lines of a gRPC code."""
    if isinstance(error, MethodNotAllowed):
        return 405, JSON_TYPE + f"Allow: {error.allow}\r\n".encode()
    if isinstance(error, TooManyRequests):
        return 429, JSON_TYPE + b"Retry-After: %d\r\n" % error.retry_after_s
    status = HTTP_STATUS[code]
    return status, JSON_TYPE + b"Retry-After: 1\r\n" if status == 503 else JSON_TYPE
