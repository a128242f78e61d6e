"""Which addresses are believed to be some, by X-Forwarded-For and by the PROXY protocol."""

from __future__ import annotations

import ipaddress
import time

import pytest

from kvnode.net.proxies import Proxies, client_network, parse_address

PROXIES = Proxies((ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")), prefaced=False)
BALANCER = "10.0.0.1"


@pytest.mark.parametrize(
    "odd",
    [
        *("fe80::1%any text", "fe80::1%eth0", "192.0.2.1%x", "[2001:db8::1]", "[2001:db8::1]:80", "192.0.2.1:80"),
        *(
            "192.0.2.01",
            "0300.0.2.1",
            "192.0.2",
            "3221225985",
            "0xC0000201",
            "",
            " ",
            "unknown",
            "_hidden",
            "localhost",
        ),
        *("١٩٢.0.2.1", "192.0.2.1\n", "192.0.2.1 evil", "::ffff:192.0.2.1%x", "1" * 5_000, "2001:db8::1/64", "-"),
    ],
)
def test_what_is_no_address_is_not_believed(odd: str) -> None:
    assert parse_address(odd) is None
    assert PROXIES.client_of(odd, BALANCER) == BALANCER
    assert PROXIES.client_of(f"192.0.2.9, {odd}", BALANCER) == BALANCER, "nor what stands left of it"
    assert PROXIES.client_of(f"{odd}, 192.0.2.9", BALANCER) == "192.0.2.9"


def test_one_address_has_one_name() -> None:
    for same in ("192.0.2.1", "::ffff:192.0.2.1", "::FFFF:c000:201", "\t192.0.2.1 "):
        assert PROXIES.client_of(same, BALANCER) == "192.0.2.1"
    assert PROXIES.client_of("2001:DB8:0:0::1", BALANCER) == "2001:db8::1"
    assert PROXIES.client_of("192.0.2.7, ::ffff:10.0.0.2", BALANCER) == "192.0.2.7", "a proxy of ours in IPv6 too"


def test_long_lists_cost_little() -> None:
    began = time.perf_counter()
    assert PROXIES.client_of("10.0.0.2," * 100_000 + "10.0.0.3", BALANCER) == "10.0.0.2"
    assert PROXIES.client_of("," * 1_000_000, BALANCER) == BALANCER
    assert time.perf_counter() - began < 0.5


def test_a_client_in_ipv6_is_a_whole_network_of_it() -> None:
    assert client_network("192.0.2.1") == "192.0.2.1"
    assert client_network("2001:db8::1") == client_network("2001:db8::ffff:1") == "2001:db8::/64"
    assert client_network("2001:db8:0:1::1") == "2001:db8:0:1::/64"
    assert client_network("::ffff:192.0.2.1") == "192.0.2.1"
    assert client_network("fe80::1%eth0") == "fe80::/64"
