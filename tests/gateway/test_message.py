"""Requests of etcd's gateway, field by field: what comes in as what, and what is no message at all."""

from __future__ import annotations

import pytest

from kvnode.http.gateway.errors import Status
from kvnode.http.gateway.message import (
    boolean,
    data,
    enum,
    int64,
    message,
    messages,
    nested,
    plain_put,
    repeated,
    table,
)

FIELDS = table(
    key=data,
    limit=int64,
    keys_only=boolean,
    sort_order=enum("NONE", "ASCEND", "DESCEND"),
    filters=repeated(enum("NOPUT", "NODELETE")),
    create_request=nested(table(watch_id=int64)),
    TTL=int64,
)

READ = {
    b"": {},
    b" \r\n": {},
    b"{}": {},
    b'{"key":"YQ=="}': {"key": b"a"},
    b'{"key":""}': {"key": b""},
    b'{"key":"YQ"}': {"key": b"a"},
    b'{"key":"__79"}': {"key": b"\xff\xfe\xfd"},
    b'{"key":"//79"}': {"key": b"\xff\xfe\xfd"},
    b'{"key":"YW\\nJj"}': {"key": b"abc"},
    b'{"limit":7}': {"limit": 7},
    b'{"limit":"7"}': {"limit": 7},
    b'{"limit":"-9223372036854775808"}': {"limit": -(2**63)},
    b'{"limit":9223372036854775807}': {"limit": 2**63 - 1},
    b'{"limit":1.0}': {"limit": 1},
    b'{"keys_only":true}': {"keys_only": True},
    b'{"keysOnly":true}': {"keys_only": True},
    b'{"keysonly":true}': {},
    b'{"sort_order":"DESCEND"}': {"sort_order": 2},
    b'{"sortOrder":1}': {"sort_order": 1},
    b'{"sort_order":7}': {"sort_order": 0},
    b'{"filters":["NODELETE",0]}': {"filters": [1, 0]},
    b'{"createRequest":{"watchId":"3"}}': {"create_request": {"watch_id": 3}},
    b'{"TTL":60}': {"TTL": 60},
    b'{"limit":null,"key":null,"no_such_field":[{}]}': {},
    b'{"limit":1,"limit":2}': {"limit": 2},
    b'{"key":"YQ=="} {"key":"x"}': {"key": b"a"},
    b'{"limit":1} nonsense': {"limit": 1},
}
REFUSED = [
    *(b"not json", b"[]", b"7", b"null", b'"a"', b'{"key":', b"{", b"\xff\xfe", b'{"limit":NaN}', b"[" * 20_000),
    *(b'{"key":"***"}', b'{"key":"Y"}', b'{"key":7}', b'{"key":"\xc3\xa9"}', b'{"key":"YQ==YQ=="}'),
    *(b'{"limit":"x"}', b'{"limit":1.5}', b'{"limit":"1.5"}', b'{"limit":true}', b'{"limit":"9223372036854775808"}'),
    *(b'{"limit":-9223372036854775809}', b'{"limit":%b}' % (b"9" * 33), b'{"limit":1e400}', b'{"limit":""}'),
    *(b'{"keys_only":"true"}', b'{"keys_only":1}', b'{"sort_order":"up"}', b'{"sort_order":1.0}', b'{"sort_order":[]}'),
    *(b'{"filters":"NOPUT"}', b'{"filters":[null]}', b'{"create_request":[]}', b'{"create_request":{"watch_id":"a"}}'),
]  # fmt: skip


@pytest.mark.parametrize("body", READ)
def test_a_message_is_read_as_etcd_reads_it(body: bytes) -> None:
    assert message(body, FIELDS) == READ[body]


@pytest.mark.parametrize("body", REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_such_message_is_refused_in_one_sentence(body: bytes) -> None:
    with pytest.raises(Status) as refused:
        message(body, FIELDS)
    assert refused.value.grpc_code == 3
    assert refused.value.message.endswith(".")
    assert len(refused.value.message) < 200


def test_a_body_may_hold_several_messages() -> None:
    assert messages(b'{"limit":1}{"limit":"2"}\n {} ', FIELDS, 3) == [{"limit": 1}, {"limit": 2}, {}]
    assert messages(b" ", FIELDS, 3) == []
    for body in (b"{}{}{}{}", b"{} x", b"{}{"):
        with pytest.raises(Status):
            messages(body, FIELDS, 3)


PUTS = {
    b'{"key":"YQ==","value":"MQ=="}': (b"a", b"1"),
    b'{"key": "YQ==", "value": "MQ=="}': (b"a", b"1"),
    b'{"key":"YQ==","value":""}': (b"a", b""),
    b'{"key":"","value":"MQ=="}': (b"", b"1"),
}
OTHERS = [
    *(b"", b"{}", b'{"key":"YQ=="}', b'{"value":"MQ==","key":"YQ=="}', b'{"key":"YQ==","value":"MQ==","lease":"1"}'),
    *(b'{"key":"YQ==","value":"MQ=="} {}', b'{"key":"YQ==","value":"MQ=="', b'{"key":"YQ==";"value":"MQ=="}'),
    *(b'{"key":"YQ==","value":"MQ\\n=="}', b'{"key":"YQ==","value":"MQ\n=="}', b'{"key":"YQ==","value":"MQ"}'),
    *(b'{"key":"\xc3\xa9","value":"MQ=="}', b'{"key":"YQ\\"=","value":"MQ=="}', b'{"key":"YQ==","value":"_-8="}'),
    *(b'{"key":"YQ==","key":"Yg=="}', b'["key":"YQ==","value":"MQ=="}', b'{"key":"***","value":"MQ=="}'),
    *(b'{"key":"YQ==","value":7}', b'{"key":"YQ==","value":null}', b'{"key":"YQ==","value":"MQ==","prev_kv":true}'),
]  # fmt: skip


@pytest.mark.parametrize("body", PUTS)
def test_what_nearly_every_put_sends_is_read_without_a_parser(body: bytes) -> None:
    assert plain_put(body) == PUTS[body]
    assert message(body, table(key=data, value=data)) == dict(zip(("key", "value"), PUTS[body], strict=True))


@pytest.mark.parametrize("body", OTHERS)
def test_every_other_put_is_the_parsers(body: bytes) -> None:
    assert plain_put(body) is None
