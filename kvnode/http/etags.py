"""Entity tags: a key's tag is its `mod_revision` in quotes. Conditional requests as RFC 9110, section 13, has them."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import hdrs, web
from multidict import istr

from kvnode.errors import BadRequest, PreconditionFailed
from kvnode.state.commands import ABSENT, EXISTS, Expect

# The expectation travels in the command, whose size is bounded.
TAGS_MAX: Final = 16
_LISTED_TAG: Final = re.compile(r'[ \t,]*(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"[ \t]*(?:,[ \t,]*|$)')
_REVISION: Final = re.compile(r"[1-9][0-9]{0,17}")


def write_expectation(request: web.BaseRequest, *, may_create: bool) -> Expect:
    """What a write's headers demand of the key. Weak tags never match strongly (RFC 9110, 8.8.3.2)."""
    headers = request.headers
    has_match, has_none_match = hdrs.IF_MATCH in headers, hdrs.IF_NONE_MATCH in headers
    if not has_match and not has_none_match:
        return None
    if has_match and has_none_match:
        raise BadRequest("If-Match and If-None-Match contradict each other on a write; send one of them.")
    if has_none_match:
        if _field(request, hdrs.IF_NONE_MATCH).strip() != "*" or not may_create:
            raise BadRequest("If-None-Match is for PUT, and only as '*': it creates the key or fails.")
        return (ABSENT,)
    tags = _tags(request, hdrs.IF_MATCH)
    return (EXISTS,) if tags is None else tuple(revision for weak, revision in tags if revision and not weak)


def refuse_conditions(request: web.BaseRequest) -> None:
    """For a write whose conditions stand elsewhere, or that has none: one that is ignored would be taken for kept."""
    if hdrs.IF_MATCH in request.headers or hdrs.IF_NONE_MATCH in request.headers:
        raise BadRequest("This request takes no If-Match and no If-None-Match; a transaction compares.")


def check_read(request: web.BaseRequest, mod_revision: int) -> bool:
    """True where the answer is 304. PreconditionFailed where If-Match asks for another revision."""
    headers = request.headers
    if hdrs.IF_MATCH in headers:
        tags = _tags(request, hdrs.IF_MATCH)
        if tags is not None and (False, mod_revision) not in tags:
            raise PreconditionFailed("The key's ETag is not one that If-Match names.", mod_revision)
    if hdrs.IF_NONE_MATCH in headers:
        tags = _tags(request, hdrs.IF_NONE_MATCH)
        return tags is None or any(revision == mod_revision for _, revision in tags)
    return False


def _field(request: web.BaseRequest, name: istr) -> str:
    """A list-valued header; several lines of it are one list."""
    return ", ".join(request.headers.getall(name))


def _tags(request: web.BaseRequest, name: istr) -> list[tuple[bool, int]] | None:
    """(weak, revision) for each tag, revision 0 for a tag that this node never gave out; None for '*'."""
    field = _field(request, name).strip()
    if field == "*":
        return None
    tags, at = [], 0
    while at < len(field):
        match = _LISTED_TAG.match(field, at)
        if match is None:
            raise BadRequest(f'{name} holds something that is not an ETag; send it with its quotes, as "12".')
        weak, revision = match.groups()
        tags.append((weak is not None, int(revision) if _REVISION.fullmatch(revision) else 0))
        at = match.end()
    if not tags:
        raise BadRequest(f'{name} is empty; send an ETag with its quotes, as "12", or leave the header out.')
    if len(tags) > TAGS_MAX:
        raise BadRequest(f"{name} holds more than {TAGS_MAX} ETags.")
    return tags
