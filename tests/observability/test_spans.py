"""Spans of a real node, as whoever collects them gets them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kvnode.errors import StartupError
from kvnode.http.spans import Spans
from tests.cluster import Cluster, wait_until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An address that takes spans, and (resource attributes, span) of each that it took."""
    taken: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {each.key: each.value.string_value for each in group.resource.attributes}
                taken.extend((about, span) for scope in group.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_a_request_is_a_span_in_its_clients_trace(make_cluster: Callable[..., Cluster]) -> None:
    with collector() as (url, taken):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        cluster = make_cluster(size=1, args=("--otel",), env=env).start()
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "order-17"}
        assert cluster.request("n1", "PUT", "/v1/kv/a?ttl=60", b"1", headers).status == 200

        def mine() -> list[Any]:
            return [each for each in list(taken) if each[1].trace_id.hex() == TRACE]

        ((about, span),) = wait_until(mine, 10.0, "the span arrives")
        assert (span.name, span.parent_span_id.hex()) == ("PUT", PARENT)
        attributes = {each.key: each.value.string_value or each.value.int_value for each in span.attributes}
        assert attributes == {
            "http.request.method": "PUT",
            "url.path": "/v1/kv/a",
            "http.response.status_code": 200,
            "kvnode.request_id": "order-17",
        }
        assert (about["service.name"], about["service.instance.id"]) == ("kvnode", "n1")
        # What was not sent yet when the node is told to stop still arrives.
        before = len(taken)
        cluster.request("n1", "GET", "/v1/kv/a")
        assert cluster.terminate("n1") == 0
        assert len(taken) > before


def test_without_the_libraries_the_node_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(StartupError, match=r"pip install 'kvnode\[otel\]'"):
        Spans("n1", "1")
