"""OpenTelemetry, where it is asked for (--otel): one span for each request, in the trace that its client began.

The libraries are an extra (`kvnode[otel]`) and are imported here alone. A span costs the loop some forty microseconds
and leaves by a thread of the library's own, in batches; what its queue has no room for is dropped. Where to, how often
and which share of them: the standard's own OTEL_… variables.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from kvnode.errors import StartupError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

FLUSH_MS: Final = 1_000  # at the node's end, which must not wait long for a span collector
PROPAGATED: Final = ("traceparent", "tracestate")


class Spans:
    """Raises StartupError where the libraries are not installed."""

    def __init__(self, node_id: str, version: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise StartupError(
                "--otel needs the OpenTelemetry libraries, which are not installed: pip install 'kvnode[otel]'."
            ) from None
        resource = Resource.create(
            {"service.name": "kvnode", "service.instance.id": node_id, "service.version": version}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("kvnode", version)
        self._context = TraceContextTextMapPropagator()
        self._server, self._failed = SpanKind.SERVER, StatusCode.ERROR

    def begin(self, request: web.BaseRequest, request_id: str) -> Span:
        carrier = {name: request.headers[name] for name in PROPAGATED if name in request.headers}
        attributes = {
            "http.request.method": request.method,
            "url.path": request.raw_path.partition("?")[0],
            "kvnode.request_id": request_id,
        }
        return self._tracer.start_span(
            request.method, self._context.extract(carrier), kind=self._server, attributes=attributes
        )

    def end(self, span: Span, status: int) -> None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._failed)
        span.end()

    async def stop(self) -> None:
        """Sends what is left, for a moment at most."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(FLUSH_MS / 1_000 + 0.5):
                await loop.run_in_executor(None, self._provider.force_flush, FLUSH_MS)
        except TimeoutError:
            pass
