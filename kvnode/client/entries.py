"""Calls as entries of a batch, in JSON made by hand: it is made for every call, and most never need more of it."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Mapping
from json.encoder import encode_basestring as quoted
from typing import Final

TOGETHER_BYTES_MAX: Final = 12_288  # of a value: as base64 it is as long as an entry may be (`together.py`)


def put_entry(key: str, value: bytes, content_type: str, leasing: Mapping[str, str], idempotency_key: str) -> str:
    """`leasing`: the ttl or the lease, as in a query."""
    more = "".join([f',"{name}":{number}' for name, number in leasing.items()]) if leasing else ""
    return (
        f'{{"put":{{"key":{quoted(key)},"value":"{b2a_base64(value, newline=False).decode()}",'
        f'"content_type":{quoted(content_type)},"idempotency_key":{quoted(idempotency_key)}{more}}}}}'
    )


def delete_entry(key: str, idempotency_key: str) -> str:
    return f'{{"delete":{{"key":{quoted(key)},"idempotency_key":{quoted(idempotency_key)}}}}}'


def get_entry(key: str, stale: bool) -> str:
    wanted = ',"consistency":"stale"' if stale else ""
    return f'{{"get":{{"key":{quoted(key)}{wanted}}}}}'
