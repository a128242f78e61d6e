"""One call to any node: which is asked first, what is sent again, and how long for.

After a refused connection and a definite 503 the next node may always be asked: nothing was applied. A keyed write that
is one too many (429) is sent again in a moment. A read may be tried again after anything else as well, and so may a
write that carries an idempotency key, under which the cluster carries it out once, however often it arrives. Anything
else whose connection broke, or whose answer did not come, raises `OutcomeUnknown` at once; a write with a key does so
when its fate was not learned in time.

What is certain stays certain. Every request says how long this client waits for it (`Kvnode-Timeout`), so the node
answers before it is cut off. No try is begun that has no time for an answer: the last definite answer stands.

Any node takes any call, and one that follows hands it to the leader. Answers say who leads and who answered, so once
a URL is known to be the leader's, writes and linearizable reads go there first, and save that hop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import uniform
from typing import Any, Final
from uuid import uuid4

import aiohttp
from yarl import URL

from kvnode import errors
from kvnode.client.access import OPEN, Access, Unreachable, Untrusted, no_connection
from kvnode.client.answers import Answer, not_a_node, parsed, refusal
from kvnode.client.misuse import WrongState, WrongValue, seconds, text, urls_in
from kvnode.client.together import ENTRY_CHARS_MAX, Lane

CONNECT_S: Final = 2.0
ATTEMPT_S: Final = 6.0  # for one keyed write at one node: a node answers within 5 s, so what takes longer is lost
# How long after it was first sent a write of unknown outcome is sent again. The cluster remembers a bounded number of
# writes (README.md); beyond its window a repetition would be a new write, so this stays far inside it.
RESEND_S: Final = 10.0
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
IDEMPOTENCY_KEY_CHARS_MAX: Final = 64
# Between two rounds over all nodes: the first short against an election, the last short against a person's patience.
PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 0.5
# A later try with less time than this is not begun: its answer could not be back, and what was definite would be in
# doubt. A node takes no less than 100 ms (docs/OPERATIONS.md, Limits).
TRY_S_MIN: Final = 0.15
TIMEOUT: Final = "Kvnode-Timeout"
# A node that did not answer is asked last for so long: a frozen one would cost every call the whole time of a try.
SILENT_S: Final = 30.0
LEFT_S_MIN: Final = 0.001  # aiohttp takes 0 for no bound
NODE_TIMEOUT_S_MIN: Final = 0.1  # what a node takes in that header
JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}
NO_HEADERS: Final[Mapping[str, str]] = {}


class Calls:
    """A session and the base URLs of a cluster. `timeout_s` bounds each call as a whole, over all nodes and retries."""

    def __init__(self, urls: str | Sequence[str], timeout_s: float, access: Access = OPEN) -> None:
        self._access = access
        self.urls = [_checked(url) for url in urls_in(urls)]
        if not self.urls:
            raise WrongValue("No node to talk to: give at least one URL.")
        self.timeout_s = seconds("timeout_s", timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None
        self._node_of: dict[str, str] = {}  # URL -> who answered there last; behind a balancer, one of many
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leader: str | None = None
        self._silent_until: dict[str, float] = {}  # URLs whose last try got no answer: they are asked last so long
        self._lanes: dict[tuple[str, bool, bool], Lane] = {}  # by URL, for reads or for writes, of stale reads or not
        self._own_time: set[str] = set()  # URLs that take their own time, whatever Kvnode-Timeout says (0.1.0)

    def open(self) -> None:
        """With the loop running, which is the one that all calls are made in."""
        if self._session is not None:
            raise WrongState("The client is open already: `async with` it once, and use it inside.")
        self._loop = asyncio.get_running_loop()
        session = self._access.session(trace_configs=[_tracing()])
        # aiohttp sends a PUT or DELETE a second time by itself when the connection breaks before the answer. A
        # conditional write that was applied would then be told that it failed. There is no public switch.
        session._retry_connection = False
        self._session = session
        # A watch holds its connection. In the pool of the calls, a hundred of them would leave none for anything else.
        self._streams = self._access.session(connections=0)

    async def close(self) -> None:
        if self._session is not None and self._streams is not None:
            session, streams = self._session, self._streams
            self._session = self._streams = None
            for lane in self._lanes.values():
                lane.close()
            await session.close()
            await streams.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        return self._open(self._session)

    @property
    def streams(self) -> aiohttp.ClientSession:
        """For watches, as many as the caller opens."""
        return self._open(self._streams)

    def _open(self, session: aiohttp.ClientSession | None) -> aiohttp.ClientSession:
        if session is None:
            state = "closed" if self._loop is not None else "not open"
            raise WrongState(f"The client is {state}: use it inside `async with Client(...) as client`.")
        if self._loop is not asyncio.get_running_loop():
            raise WrongState("The client is another event loop's: make one in each loop, and use it there alone.")
        return session

    async def call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        *,
        timeout_s: float | None = None,
        attempt_s: float | None = None,
        in_order: bool = False,
        operation: str = "",
    ) -> Answer:
        """The first answer that settles the call. Raises the typed error of a refusal, Unavailable, OutcomeUnknown.

        `attempt_s`: for a keyed write at one node. `in_order`: the first URL first, whoever leads. `operation`: the
        same call as an entry of a batch, in JSON, where its first try may travel with others (`together.py`).
        """
        self._open(self._session)
        clock = asyncio.get_running_loop().time
        patience_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = clock() + patience_s
        headers = headers or {}
        doubt: errors.OutcomeUnknown | None = None
        # The last definite answer. It says what became of the call for as long as no later try got out without one.
        refused: errors.KvnodeError | None = None
        needs_s = 0.0  # what a try takes to be answered, as far as this call has learned
        pauses = _pauses_s()
        tried = False
        while True:
            unreachable: Unreachable | None = None
            refused_now: errors.KvnodeError | None = None
            untrusted_everywhere = True
            forgotten: errors.Compacted | None = None
            for url in self.urls if in_order else self._leader_first():
                began = clock()
                if tried and deadline - began < needs_s:
                    break
                first = not tried
                tried, needs_s = True, max(needs_s, TRY_S_MIN)
                try:
                    if first and operation:
                        answer = await self._travel(url, method, path, headers, data, deadline, in_order, operation)
                    else:
                        answer = await self._send(url, method, path, headers, data, deadline - began, attempt_s)
                    return answer if doubt is None else replace(answer, doubt=doubt)
                except Unreachable as e:
                    unreachable = unreachable or e
                    untrusted_everywhere = untrusted_everywhere and isinstance(e, Untrusted)
                except errors.Unavailable as e:
                    refused_now, untrusted_everywhere = e, False
                    if method != "GET" and url in self._own_time:
                        needs_s = max(needs_s, clock() - began + TRY_S_MIN)
                except errors.OutcomeUnknown as e:
                    untrusted_everywhere = False
                    if IDEMPOTENCY_KEY not in headers:
                        raise
                    if doubt is None:
                        deadline = min(deadline, began + RESEND_S)
                    doubt = e
                except SETTLED:
                    raise
                except errors.TooManyRequests as e:
                    # More keyed writes than the cluster can remember: it takes this one when the oldest are old enough.
                    # The others would say the same.
                    if IDEMPOTENCY_KEY not in headers:
                        raise
                    refused_now, untrusted_everywhere = e, False
                    break
                except errors.Compacted as e:
                    forgotten = e  # nodes remember different stretches of the past: the next one may know
                    continue
                except errors.KvnodeError:
                    # This attempt failed for sure; what became of an earlier one is as unknown as before.
                    if doubt is not None:
                        raise doubt from None
                    raise
                self._leader = None  # whom the others know may be another by now
            if forgotten is not None:
                raise forgotten
            refused = refused_now or unreachable or refused
            if unreachable is not None and untrusted_everywhere and doubt is None:
                raise unreachable
            left_s = deadline - clock() - needs_s
            if left_s <= 0:
                raise doubt or refused or errors.Unavailable(f"No node answered within {patience_s:g} s.")
            await asyncio.sleep(min(next(pauses), left_s))

    async def look(self, url: str, path: str, timeout_s: float) -> Answer | None:
        """One GET to exactly this node, whatever it answers; None where it did not in time."""
        try:
            async with self.session.get(
                URL(url.rstrip("/") + path, encoded=True),
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                return Answer(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    def _leader_first(self) -> Iterator[str]:
        """Every URL once: the leader's, or while that is not known those that it may be, then the rest in order."""
        first = [url for url in self.urls if self._leader is not None and self._node_of.get(url) == self._leader]
        if self._leader is not None and not first:
            first = [url for url in self.urls if url not in self._node_of]
        ordered = [*first, *(url for url in self.urls if url not in first)]
        if self._silent_until:
            now = asyncio.get_running_loop().time()
            ordered.sort(key=lambda url: self._silent_until.get(url, 0.0) > now)  # otherwise in their order
        yield from ordered

    async def _travel(
        self,
        url: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        data: bytes | None,
        deadline: float,
        stale: bool,
        operation: str,
    ) -> Answer:
        """A first try: with others where others are under way, or alone. Raises as `_send` does."""
        lane = self._lanes.get((url, method == "GET", stale)) or self._lane(url, method == "GET", stale)
        assert self._loop is not None
        if not lane.is_free and len(operation) <= ENTRY_CHARS_MAX and self._loop.time() >= lane.apart_until:
            outcome = await lane.join(operation, deadline)
            if outcome is not None:
                return Answer(200, NO_HEADERS, b"", None, outcome)
        lane.under_way += 1
        try:
            return await self._send(url, method, path, headers, data, deadline - self._loop.time(), None)
        finally:
            lane.ended_alone()

    def _lane(self, url: str, is_read: bool, stale: bool) -> Lane:
        async def send(body: bytes, timeout_s: float) -> list[dict[str, Any]]:
            answer = await self._send(url, "POST", "/v1/batch", JSON, body, timeout_s, None, is_read)
            results = parsed(answer).get("results")
            if type(results) is not list or not all(type(each) is dict for each in results):
                raise not_a_node()
            return results

        assert self._loop is not None
        lane = self._lanes[url, is_read, stale] = Lane(self._loop, send, is_read)
        return lane

    async def _send(
        self,
        url: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        data: bytes | None,
        timeout_s: float,
        attempt_s: float | None,
        reads_together: bool | None = None,
    ) -> Answer:
        """`reads_together`: of a batch, whether all of it are reads; or else each write in it has a key of its own."""
        is_read = method == "GET" or reads_together is True
        if is_read and len(self.urls) > 1:
            timeout_s /= 2  # one frozen node must leave time to ask the next
        elif IDEMPOTENCY_KEY in headers or reads_together is False:
            timeout_s = min(timeout_s, attempt_s or ATTEMPT_S)
        timeout_s = max(timeout_s, LEFT_S_MIN)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_S, timeout_s / 2))
        connected: list[bool] = []  # nothing is sent before there is a connection, so nothing is in doubt before that
        try:
            async with self.session.request(
                method,
                URL(url + path, encoded=True),  # as it stands: yarl would fold `a/../b` and `%2F`
                headers={**headers, TIMEOUT: f"{max(timeout_s, NODE_TIMEOUT_S_MIN):.3f}"},
                data=data,
                timeout=timeout,
                allow_redirects=False,
                trace_request_ctx=connected,
            ) as response:
                answer = Answer(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            if isinstance(e, TimeoutError):
                self._silent_until[url] = asyncio.get_running_loop().time() + SILENT_S
            if not connected:
                raise no_connection(url, e) from None
            if is_read:
                raise errors.Unavailable(f"{url} did not answer: {_reason(e)}.") from None
            raise errors.OutcomeUnknown(
                f"{url} did not answer ({_reason(e)}): the request may or may not have been carried out."
            ) from None
        self._silent_until.pop(url, None)
        if node := answer.headers.get("Kvnode-Node"):
            self._node_of[url] = node
        self._leader = answer.headers.get("Kvnode-Leader")
        if answer.status < 300:
            return answer
        error = refusal(url, answer, is_read)
        if answer.status == 503:
            (self._own_time.discard if TIMEOUT in answer.headers else self._own_time.add)(url)
        raise error


def _tracing() -> aiohttp.TraceConfig:
    """Notes in a request's context that it has a connection, which aiohttp's exceptions do not tell apart."""

    async def connected(session: object, context: Any, params: object) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.append(True)

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(connected)
    tracing.on_connection_reuseconn.append(connected)
    return tracing


def _pauses_s() -> Iterator[float]:
    """Between rounds over all nodes: longer each time, and never the same for two clients that failed together."""
    pause_s = PAUSE_S
    while True:
        yield pause_s * uniform(0.75, 1.25)
        pause_s = min(PAUSE_S_MAX, 2 * pause_s)


def _checked(url: str) -> str:
    try:
        parsed = URL(url)
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise WrongValue(f"{url!r} is no URL of a node; write such as http://127.0.0.1:8001.")
    return url.rstrip("/")


# Refusals that the state machine gives, and gives again to a repetition: they settle what became of a keyed write.
SETTLED: Final = (
    errors.KeyNotFound,
    errors.PreconditionFailed,
    errors.IdempotencyKeyReused,
    errors.LeaseNotFound,
    errors.TooManyLeases,
)


def _reason(e: Exception) -> str:
    return "timed out" if isinstance(e, TimeoutError) else "the connection broke"


def once(idempotency_key: str | None) -> dict[str, str]:
    """The header under which a write may be sent any number of times; a key of its own where none is given."""
    key = uuid4().hex if idempotency_key is None else text("An idempotency key", idempotency_key)
    if not (1 <= len(key) <= IDEMPOTENCY_KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        raise WrongValue(f"An idempotency key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters.")
    return {IDEMPOTENCY_KEY: key}


def json_bytes(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
