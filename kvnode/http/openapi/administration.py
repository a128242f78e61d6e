"""The routes of operators and of what watches over nodes: probes, metrics, /admin/api/v1, this description."""

from __future__ import annotations

from typing import Final

from kvnode.http.openapi.operation import ADMIN, BYTES, JSON, PLAIN, READ, TEXT, Operation, Reply, json, probe
from kvnode.http.openapi.shapes import ref

ADMINISTRATION: Final[dict[str, Operation]] = {
    # --- probes -----------------------------------------------------------------------------------
    "GET /admin/healthz": Operation(
        "health", "Whether the HTTP server answers.", {200: Reply("It does.", PLAIN)}, ("internal",)
    ),
    "GET /admin/healthz/leader": Operation(
        "leader_health",
        "Whether this node leads, by the word of a majority that came after the question.",
        {200: Reply("It leads.", PLAIN), 503: Reply("It does not.", PLAIN, ("Kvnode-Reason",))},
        ("internal",),
    ),
    "GET /healthz": probe("startup", "Whether start-up is finished.", "verbose", "exclude"),
    "GET /livez": probe("liveness", "Whether the process is alive; never depends on peers.", "verbose", "exclude"),
    "GET /livez/{check}": probe("liveness_check", "One check of `/livez`.", "livez_check"),
    "GET /readyz": probe("readiness", "Whether this node can serve clients now.", "verbose", "exclude"),
    "GET /readyz/{check}": probe("readiness_check", "One check of `/readyz`.", "readyz_check"),
    # --- administration ---------------------------------------------------------------------------
    "GET /metrics": Operation(
        "metrics",
        "What this node counts.",
        {200: Reply("For Prometheus.", {TEXT: {"type": "string"}, "application/openmetrics-text": {"type": "string"}})},
        ("internal",),
    ),
    "GET /admin/api/v1/cluster": Operation(
        "cluster", "The cluster as this node sees it.", json("Cluster", "The cluster."), ("internal",)
    ),
    "GET /admin/api/v1/access": Operation(
        "access", "What the sender may do here; needs no token.", json("Access", "What it may do."), ("internal",)
    ),
    "GET /admin/api/v1/nodes": Operation(
        "nodes",
        "Every node in its own words: each is asked, and one that does not answer within a second is unreachable.",
        json("Nodes", "All members."),
        ("internal",),
    ),
    "GET /admin/api/v1/timeline": Operation(
        "timeline",
        "Changes of leadership, oldest first, as far as the nodes remember: each the last 128 since it began.",
        json("Timeline", "What has happened."),
        ("internal",),
    ),
    "GET /admin/api/v1/figures": Operation(
        "figures",
        "Rates and times of each node over the last 15 minutes, a sample for each 5 seconds.",
        json("Figures", "Every node that answers."),
        ("bad_request", "internal"),
        ("since_ms",),
    ),
    "GET /admin/api/v1/heat": Operation(
        "heat",
        "Requests by the beginning of their keys over the last hour, minute by minute, on all nodes together: sampled, "
        "the 16 busiest.",
        json("Heat", "What the sender's token may see of it."),
        ("internal",),
    ),
    "GET /admin/api/v1/history": Operation(
        "key_history",
        "What happened to a key, newest first, as far back as the node that answers remembers.",
        json("History", "Its last changes.", "Kvnode-Applied-Lag"),
        READ,
        ("key_of_history", "limit_of_history", "consistency"),
    ),
    "POST /admin/api/v1/leader/transfer": Operation(
        "transfer_leadership",
        "Hands the leadership to a member, or to the fittest one.",
        json("Transferred", "Once the new leader is confirmed."),
        ADMIN,
        (),
        {JSON: ref("Transfer")},
        body_required=False,
    ),
    "POST /admin/api/v1/drain": Operation(
        "drain",
        "A node's probes fail from now on, and it hands over; it still serves. Without `node`: the one that answers.",
        json("Draining", "It drains."),
        (*ADMIN, "last_ready_node"),
        (),
        {JSON: ref("Drain")},
        body_required=False,
    ),
    "DELETE /admin/api/v1/drain": Operation(
        "undrain",
        "A node takes new work again. It is named in the query or in the body; without: the one that answers.",
        json("Draining", "It drains no more."),
        ADMIN,
        ("node_to_undrain",),
        {JSON: ref("Undrain")},
        body_required=False,
    ),
    "GET /admin/api/v1/backup": Operation(
        "backup",
        "All keys at one revision, streamed.",
        {
            200: Reply(
                "The file for `kvnode restore`.",
                {"application/octet-stream": BYTES},
                ("Kvnode-Revision", "Kvnode-Applied-Lag"),
            )
        },
        READ,
        ("consistency",),
    ),
    "POST /admin/api/v1/restore": Operation(
        "restore",
        "The contents of a backup of any size take the place of all keys, in one revision above both.",
        json("Restored", "It is restored."),
        (*ADMIN, "too_large", "outcome_unknown", "disk_full"),
        (),
        {"application/octet-stream": BYTES},
    ),
    "GET /admin/api/v1/members": Operation(
        "members", "The members by the log.", json("Members", "The configuration."), ("internal",)
    ),
    "POST /admin/api/v1/members": Operation(
        "add_member",
        "Adds a node: a learner, which votes by itself once it has caught up.",
        json("Members", "The configuration since."),
        ADMIN,
        (),
        {JSON: ref("NewMember")},
    ),
    "DELETE /admin/api/v1/members": Operation(
        "remove_a_member",
        "Removes the member that the body or the query names.",
        json("Members", "The configuration since."),
        ADMIN,
        ("member_to_remove", "force"),
        {JSON: ref("OldMember")},
        body_required=False,
    ),
    "DELETE /admin/api/v1/members/{member}": Operation(
        "remove_member",
        "Removes a member.",
        json("Members", "The configuration since."),
        ADMIN,
        ("member", "force"),
        {JSON: ref("OldMember")},
        body_required=False,
    ),
    "POST /admin/api/v1/members/{member}/promote": Operation(
        "promote_member",
        "Makes a learner that has caught up vote.",
        json("Members", "The configuration since."),
        ADMIN,
        ("member",),
    ),
    "POST /admin/api/v1/members/{member}/replace": Operation(
        "replace_member",
        "Makes a learner of a voter that has lost its data directory, until it has caught up.",
        json("Members", "The configuration since."),
        ADMIN,
        ("member",),
    ),
    "POST /admin/api/v1/session": Operation(
        "begin_session",
        "Begins a session with the right of the token, on all nodes of the cluster: a signed cookie.",
        json("SessionBegun", "It has begun.", "Set-Cookie"),
        ("bad_request", "forbidden", "internal", "starting"),
    ),
    "GET /admin/api/v1/session": Operation(
        "session", "Whose session the cookie is.", json("Session", "It is good."), ("internal", "unauthorized")
    ),
    "DELETE /admin/api/v1/session": Operation(
        "end_session",
        "Ends the cookie's session on all nodes, and takes the cookie back.",
        json("SessionEnded", "It is gone.", "Set-Cookie"),
        ADMIN,
    ),
    "GET /admin/api/v1/session-key": Operation(
        "session_key", "The fingerprint of the key that signs sessions.", json("SessionKey", "The key."), ("internal",)
    ),
    "POST /admin/api/v1/session-key/rotate": Operation(
        "rotate_session_key",
        "Makes a new key; the old one stays good for a time of grace.",
        json("SessionKey", "The new key."),
        ADMIN,
        (),
        {JSON: ref("Rotate")},
        body_required=False,
    ),
    "GET /admin/api/v1/tokens": Operation(
        "tokens", "Every access token, without its secret.", json("Tokens", "All."), READ
    ),
    "POST /admin/api/v1/tokens": Operation(
        "create_token",
        "Makes an access token for all nodes, and shows it this once.",
        json("NewToken", "It is made."),
        (*ADMIN, "too_many_tokens"),
        (),
        {JSON: ref("WantedToken")},
    ),
    "PATCH /admin/api/v1/tokens/{token}": Operation(
        "change_token",
        "Gives a token another role, other prefixes or another end. What was let in with its former rights ends.",
        json("Token", "It is changed."),
        (*ADMIN, "token_not_found"),
        ("token",),
        {JSON: ref("ChangedToken")},
    ),
    "POST /admin/api/v1/tokens/{token}/rotate": Operation(
        "rotate_token",
        "Gives a token another secret, shown this once; the one before it counts for a time of grace.",
        json("NewToken", "It is made."),
        (*ADMIN, "token_not_found"),
        ("token",),
        {JSON: ref("RotatedToken")},
        body_required=False,
    ),
    "DELETE /admin/api/v1/tokens/{token}": Operation(
        "revoke_token",
        "Ends a token, everywhere and at once.",
        json("RevokedToken", "It is gone."),
        (*ADMIN, "token_not_found"),
        ("token",),
    ),
    "GET /openapi.json": Operation(
        "description", "This document.", {200: Reply("It.", {JSON: {"type": "object"}})}, ("internal",)
    ),
}
