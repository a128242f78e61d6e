"""The routes under /v1: keys, transactions, leases, watches."""

from __future__ import annotations

from typing import Final

from kvnode.http.openapi.operation import ANY, BINARY, BODY, BYTES, JSON, LEASING, READ, WRITE, Operation, Reply, json
from kvnode.http.openapi.shapes import ref

DATA: Final[dict[str, Operation]] = {
    # --- keys -------------------------------------------------------------------------------------
    "PUT /v1/kv/{key}": Operation(
        "put_key",
        "Sets a key to the body, byte for byte, up to 1 MiB; its Content-Type is kept.",
        json("Written", "It is set.", "ETag", "Kvnode-Revision"),
        (*WRITE, *BODY, *LEASING, "precondition_failed"),
        ("key", "ttl", "lease", "If-Match", "If-None-Match-any", "Idempotency-Key"),
        {"application/octet-stream": BINARY},
        body_required=False,
    ),
    "GET /v1/kv/{key}": Operation(
        "get_key",
        "The key's value as it was put.",
        {
            200: Reply(
                "The value.",
                {"application/octet-stream": BINARY, ANY: BYTES},
                ("ETag", "Kvnode-Revision", "Kvnode-Lease", "Kvnode-TTL", "Kvnode-Applied-Lag"),
            ),
            304: Reply("It is still the one that If-None-Match names.", {}, ("ETag", "Kvnode-Revision")),
        },
        (*READ, "key_not_found", "precondition_failed", "compacted"),
        ("key", "consistency", "revision", "If-Match", "If-None-Match"),
    ),
    "DELETE /v1/kv/{key}": Operation(
        "delete_key",
        "Removes a key.",
        json("DeletedOne", "It is gone.", "Kvnode-Revision"),
        (*WRITE, "key_not_found", "precondition_failed"),
        ("key", "If-Match", "Idempotency-Key"),
    ),
    "GET /v1/kv": Operation(
        "list_keys",
        "A range of keys in byte order, in pages.",
        json("Page", "A page.", "Kvnode-Revision", "Kvnode-Applied-Lag"),
        READ,
        ("prefix", "start", "end", "limit", "cursor", "keys_only", "sizes", "count", "consistency"),
    ),
    "DELETE /v1/kv": Operation(
        "delete_prefix",
        "Removes all keys that begin with a prefix, in one revision.",
        json("Deleted", "How many there were.", "Kvnode-Revision"),
        WRITE,
        ("prefix_to_delete", "Idempotency-Key"),
    ),
    # --- several keys -----------------------------------------------------------------------------
    "POST /v1/txn": Operation(
        "transaction",
        "Compares, then carries out `success` or `failure`: all of it or nothing, in one revision. A branch writes a "
        "key once at most; 2 MiB in all, and the values that it reads add up to 4 MiB at most.",
        json("TxnResult", "Which branch ran, and what its operations did.", "Kvnode-Revision"),
        (*WRITE, *BODY, *LEASING),
        ("Idempotency-Key",),
        {JSON: ref("Txn")},
    ),
    "POST /v1/batch": Operation(
        "batch",
        "Independent writes, each with an outcome of its own; 8 MiB in all. With `independent` there are reads too, "
        "what is wrong with one operation is its own outcome, and a write may have a key of its own.",
        json("Batched", "What became of each, in order."),
        (*WRITE, *BODY),
        ("Idempotency-Key",),
        {JSON: ref("Batch")},
    ),
    # --- leases -----------------------------------------------------------------------------------
    "POST /v1/leases": Operation(
        "grant_lease",
        "A time to live that keys share.",
        json("Lease", "The new lease."),
        (*WRITE, *BODY, "too_many_leases"),
        ("Idempotency-Key",),
        {JSON: ref("Grant")},
    ),
    "GET /v1/leases": Operation(
        "list_leases",
        "All leases, in pages.",
        json("Leases", "A page.", "Kvnode-Applied-Lag"),
        READ,
        ("lease_cursor", "consistency"),
    ),
    "GET /v1/leases/{id}": Operation(
        "get_lease",
        "A lease with its first keys.",
        json("LeaseWithKeys", "The lease.", "Kvnode-Applied-Lag"),
        (*READ, "lease_not_found"),
        ("id", "consistency"),
    ),
    "DELETE /v1/leases/{id}": Operation(
        "revoke_lease",
        "Ends a lease and deletes its keys, in one revision.",
        json("Revoked", "It is gone.", "Kvnode-Revision"),
        (*WRITE, "lease_not_found"),
        ("id", "Idempotency-Key"),
    ),
    "POST /v1/leases/{id}/keepalive": Operation(
        "keep_lease_alive",
        "Gives a lease its whole time again.",
        json("Lease", "It is renewed."),
        (*WRITE, "lease_not_found"),
        ("id", "Idempotency-Key"),
    ),
    # --- what happens -----------------------------------------------------------------------------
    "GET /v1/watch": Operation(
        "watch",
        "Every change, once, in the order of revisions: a stream of Server-Sent Events, or one answer with `wait`.",
        {
            200: Reply(
                "The changes.", {JSON: ref("Events"), "text/event-stream": {"type": "string"}}, ("Kvnode-Revision",)
            )
        },
        (*READ, "compacted"),
        ("watched_prefix", "watched_key", "from_revision", "wait", "consistency", "Last-Event-ID"),
    ),
}
