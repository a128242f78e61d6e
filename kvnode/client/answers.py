"""What a node's answer means to a client: its JSON, or the one typed error that a refusal stands for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from kvnode import errors
from kvnode.client.shapes import ANY, CLUSTER, Shape, fits

T = TypeVar("T")

_BY_CODE: Final = {
    kind.code: kind
    for kind in (
        errors.BadRequest, errors.TooLarge, errors.UnsupportedMediaType, errors.NotFound, errors.Unavailable,
        errors.NoLeader, errors.NotLeader, errors.Unverified, errors.Overloaded, errors.ShuttingDown,
        errors.Starting, errors.DiskFull, errors.KeyNotFound, errors.LeaseNotFound, errors.TooManyLeases,
        errors.IdempotencyKeyReused, errors.Conflict, errors.LastReadyNode, errors.Compacted,
        errors.OutcomeUnknown, errors.TokenNotFound, errors.TooManyTokens, errors.TooManyRequests,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whole. `doubt`: what became of an earlier attempt, where nobody knows.

    `document`: the JSON object of one that travelled with others, whose headers and body there are none of.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    doubt: errors.OutcomeUnknown | None = None
    document: dict[str, Any] | None = None


def etag_revision(headers: Mapping[str, str]) -> int | None:
    """The revision in the answer's ETag, None without one."""
    tag = headers.get("ETag", "").strip('"')
    return int(tag) if tag.isdigit() else None


def parsed(answer: Answer, shape: Shape = ANY) -> dict[str, Any]:
    """The JSON object that a node's answer is, of this shape."""
    if answer.document is not None:
        return answer.document
    try:
        body: dict[str, Any] = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise not_a_node() from None
    if not fits(body, shape):
        raise not_a_node()
    return body


def cluster_of(answer: Answer) -> dict[str, Any]:
    """What a node says of its cluster: the body of `GET /admin/api/v1/cluster`, with one group at least."""
    body = parsed(answer, CLUSTER)
    shaped(lambda: body["groups"][0])
    return body


def shaped(read: Callable[[], T]) -> T:
    """What `read` takes out of an answer; an answer of another shape is nobody's KeyError."""
    try:
        return read()
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise not_a_node() from None


def not_a_node() -> errors.KvnodeError:
    """For an answer that no node gives."""
    return errors.KvnodeError("The answer is not a kvnode node's; does the URL point at one?")


def refusal(url: str, answer: Answer, is_read: bool) -> errors.KvnodeError:
    """The one place where a status and a JSON body become a typed error."""
    try:
        body = parsed(answer)
        code, message = str(body["error"]), str(body["message"])
    except (errors.KvnodeError, KeyError):
        return _foreign_refusal(url, answer.status, is_read)
    if answer.status in (401, 403):
        kind = errors.Unauthorized if answer.status == 401 else errors.Forbidden
        return kind(message, code="not_allowed")
    if code == errors.PreconditionFailed.code:
        return errors.PreconditionFailed(message, etag_revision(answer.headers))
    if code == errors.Compacted.code:
        return errors.Compacted(message, body.get("oldest_revision"))
    if not is_read and answer.status == 503 and "outcome" not in body and "Kvnode-Node" not in answer.headers:
        return _foreign_refusal(url, answer.status, is_read)  # another program's JSON: it promises nothing
    if answer.status == 503 and code not in _BY_CODE and body.get("outcome") != "unknown":
        return errors.Unavailable(message, code)
    if code in _BY_CODE or (body.get("outcome") == "unknown" and not is_read):
        return error_of(code, message, body.get("outcome") == "unknown" and not is_read)
    return errors.Definite(message, code) if answer.status < 500 else errors.KvnodeError(message, code)


def error_of(code: str, message: str, is_unknown: bool) -> errors.KvnodeError:
    """The error that a code stands for, where it carries no more than its sentence."""
    if is_unknown:
        return errors.OutcomeUnknown(message)
    kind = _BY_CODE.get(code)
    return kind(message) if kind is not None else errors.Definite(message, code)


def _foreign_refusal(url: str, status: int, is_read: bool) -> errors.KvnodeError:
    """What a balancer in front says for itself.

    Its 503 need not mean that no node has the request: Envoy says 503 where a node's connection broke before the
    answer, and a balancer that tries again says it when no node is left. The proxies' files of this project answer in
    a node's words where it is certain.
    """
    if status in (401, 403):
        return errors.Definite(f"{url} does not allow this.", code="not_allowed")
    if status in (502, 503, 504):
        if is_read:
            return errors.Unavailable(f"{url} has no node that answers (status {status}).")
        return errors.OutcomeUnknown(
            f"{url} says that no node answers (status {status}), and not whether one has the request: "
            "it may or may not have been carried out."
        )
    return errors.KvnodeError(f"{url} answered {status}, and not as a kvnode node does; does the URL point at one?")
