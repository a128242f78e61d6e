"""The document of the route table and the entries of `operations.py`, made once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from kvnode.http.credentials import COOKIE
from kvnode.http.door import is_probe
from kvnode.http.openapi.operation import JSON, Operation, Reply
from kvnode.http.openapi.operations import OPERATIONS
from kvnode.http.openapi.parameters import PARAMETERS
from kvnode.http.openapi.schemas import SCHEMAS
from kvnode.http.openapi.shapes import Schema, ref
from kvnode.http.route import Methods

# What every request but a probe may meet before anything else: an unknown query parameter, and where the node was
# started so, the rest.
DOOR: Final = ("bad_request", "unauthorized", "forbidden", "too_many_requests")
WRITING: Final = frozenset(("PUT", "POST", "DELETE", "PATCH"))
_ALWAYS: Final = ("Kvnode-Node", "Kvnode-Leader", "Kvnode-Term")
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_NAME: Final[Schema] = {"type": "string"}
HEADERS: Final[dict[str, Schema]] = {
    "Kvnode-Node": {"description": "The node that answers.", "required": True, "schema": _NAME},
    "Kvnode-Leader": {"description": "Who leads, where this is known.", "schema": _NAME},
    "Kvnode-Term": {"description": "The node's Raft term.", "schema": _COUNT},
    "Kvnode-Revision": {"description": "The store's revision.", "schema": _COUNT},
    "Kvnode-Applied-Lag": {"description": "How many entries a stale answer may be behind.", "schema": _COUNT},
    "Kvnode-Lease": {"description": "The lease that the key goes away with.", "schema": _COUNT},
    "Kvnode-TTL": {"description": "Seconds until then, as far as this node knows.", "schema": _COUNT},
    "Kvnode-Reason": {"description": "Why it is not the leader that it should be to get 200.", "schema": _NAME},
    "Kvnode-Timeout": {"description": "`honoured`, where the request had a Kvnode-Timeout.", "schema": _NAME},
    "ETag": {"description": "The key's mod_revision, in quotes.", "schema": _NAME},
    "WWW-Authenticate": {"description": "What to send.", "schema": _NAME},
    "Set-Cookie": {"description": "The session.", "schema": _NAME},
    "Retry-After": {"description": "Seconds; the request may be sent again, here or elsewhere.", "schema": _COUNT},
}


TAGS: Final = {
    "keys": "Keys and values, one or many.",
    "leases": "A time to live that keys share.",
    "watch": "Changes as they happen.",
    "probes": "For load balancers and orchestrators.",
    "administration": "The cluster, its members, its tokens, and what it holds.",
}
# The first beginning that fits decides.
_TAG_OF: Final = (
    ("/v1/leases", "leases"),
    ("/v1/watch", "watch"),
    ("/v1/", "keys"),
    ("/admin/healthz", "probes"),
    ("/healthz", "probes"),
    ("/livez", "probes"),
    ("/readyz", "probes"),
    ("/", "administration"),
)


def document(tables: Iterable[Mapping[str, Methods]], status_of: Mapping[str, int], version: str) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for table in tables:
        for path, methods in table.items():
            paths[path] = {method.lower(): _described(method, path, status_of, shared) for method in methods}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvnode",
            "version": version,
            "summary": "A replicated key-value node.",
            "description": "Any node takes any request. 503 always means that it was not applied. "
            "A query parameter that is not described here is 400, but for probes, which ignore it. "
            "A token has a role, and may have prefixes: every key that a request names lies under one of them, or it "
            "is 403 before anything is read. "
            "A node that asks for no token takes writes from no page of another origin, and on loopback it takes "
            "loopback names in Host alone: 403. "
            "An X-Request-Id is taken over into the answer and the logs. "
            "What is under /v3, /version and /health are etcd's JSON gateway: its clients know it, and etcd describes "
            "it.",
        },
        # The node that the document comes from.
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": about} for name, about in TAGS.items()],
        "paths": paths,
        # Nothing, a token or a session: a node that was started without --token-file lets everybody in.
        "security": [{}, {"token": []}, {"session": []}],
        "components": {
            "schemas": SCHEMAS,
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "responses": shared,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": COOKIE,
                    "description": "Under TLS __Host-kvnode_session. A write under it has a body of JSON, if any, and "
                    "comes from a page of the node's own origin.",
                },
            },
        },
    }


def _tag(path: str) -> str:
    return next(tag for start, tag in _TAG_OF if path.startswith(start))


def entry(method: str, path: str) -> Operation | None:
    """What `operations.py` says of it; None where it says nothing."""
    return OPERATIONS.get(f"{'GET' if method == 'HEAD' else method} {path}")


def _described(method: str, path: str, status_of: Mapping[str, int], shared: dict[str, Any]) -> dict[str, Any]:
    operation = entry(method, path)
    if operation is None:
        return {"summary": "Not described.", "responses": {"default": {"description": "Unknown."}}}
    is_head = method == "HEAD"
    parameters = operation.parameters if is_probe(path) else (*operation.parameters, "Kvnode-Timeout")
    described: dict[str, Any] = {
        "operationId": f"{operation.name}_head" if is_head else operation.name,
        "summary": operation.about,
        "tags": [_tag(path)],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in parameters],
        "responses": _responses(operation, method, path, status_of, shared),
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": {media: {"schema": schema} for media, schema in operation.body.items()},
        }
    return described


def _responses(
    operation: Operation, method: str, path: str, status_of: Mapping[str, int], shared: dict[str, Any]
) -> dict[str, Any]:
    responses = {str(status): _reply(reply, method) for status, reply in operation.replies.items()}
    codes: dict[int, list[str]] = {}
    for code in operation.refusals if is_probe(path) else dict.fromkeys((*operation.refusals, *DOOR)):
        codes.setdefault(status_of[code], []).append(code)
    for status, named in sorted(codes.items()):
        refusal = _reply(_refusal(status, named, method), method)
        if str(status) in responses:  # a probe's own 503
            responses[str(status)]["content"] |= refusal.get("content", {})
        else:
            responses[str(status)] = _shared(refusal, f"Refused{status}", shared)
    return responses


def _shared(response: dict[str, Any], stem: str, shared: dict[str, Any]) -> dict[str, Any]:
    """A reference to it among the components: a few refusals are those of nearly all operations."""
    alike = [name for name in shared if name.partition("_")[0] == stem]
    name = next((name for name in alike if shared[name] == response), f"{stem}_{len(alike) + 1}")
    shared[name] = response
    return {"$ref": f"#/components/responses/{name}"}


def _refusal(status: int, codes: list[str], method: str) -> Reply:
    schema = ref("Error") | {"properties": {"error": {"enum": codes}}}
    if method in WRITING:
        schema["required"] = ["error", "message", "outcome"]
    own = {
        404: ("Kvnode-Applied-Lag",),
        401: ("WWW-Authenticate",),
        412: ("ETag",),
        429: ("Retry-After",),
        503: ("Retry-After", "Kvnode-Timeout"),
    }.get(status, ())
    return Reply(f"{HTTPStatus(status).phrase}: {', '.join(codes)}.", {JSON: schema}, own)


def _reply(reply: Reply, method: str) -> dict[str, Any]:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in (*_ALWAYS, *reply.headers)}
    described: dict[str, Any] = {"description": reply.about, "headers": headers}
    if method != "HEAD" and reply.content:
        described["content"] = {media: {"schema": schema} if schema else {} for media, schema in reply.content.items()}
    return described
