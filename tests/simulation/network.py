"""Links between nodes: one FIFO stream for each direction, carrying real frames.

A link breaks as a connection does: what was on its way is lost, and the sending side is told. A *muted* link
loses what is sent over it without telling anybody, which no single TCP connection does; safety must not
depend on that.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque

from kvnode.peers import frames
from kvnode.raft import messages

Link = tuple[str, str]


class Network:
    """Frames in flight. It never delivers by itself."""

    def __init__(self) -> None:
        self.flying: defaultdict[Link, deque[bytes]] = defaultdict(deque)
        self.broken: set[Link] = set()
        self.muted: set[Link] = set()
        self.sent: Counter[Link] = Counter()

    def send(self, source: str, target: str, message: messages.Message) -> bool:
        link = source, target
        if link in self.broken:
            return False
        self.sent[link] += 1
        frame = frames.encode(message)
        if link not in self.muted:
            self.flying[link].append(frame)
        return True

    def take(self, link: Link) -> messages.Message:
        """The oldest frame of a link, decoded as a node decodes it."""
        frame = self.flying[link].popleft()
        (body,) = frames.FrameReader().feed(frame)
        return frames.decode(body)

    def break_link(self, link: Link) -> None:
        self.broken.add(link)
        self.muted.discard(link)
        self.flying[link].clear()

    def duplicate(self, link: Link, position: int = 0) -> None:
        """A frame arrives once more, behind everything that is on its way."""
        flying = self.flying[link]
        flying.append(flying[position])

    def lose(self, link: Link, position: int = 0) -> None:
        """A frame never arrives, and nobody is told."""
        del self.flying[link][position]

    def busy(self) -> list[Link]:
        """The links that carry something, in an order that only the seed decides."""
        return sorted(link for link, flying in self.flying.items() if flying)


def links_between(*groups: str) -> set[Link]:
    """Every direction between members of different groups."""
    return {
        link
        for position, group in enumerate(groups)
        for other in groups[position + 1 :]
        for a in group
        for b in other
        for link in ((a, b), (b, a))
    }
