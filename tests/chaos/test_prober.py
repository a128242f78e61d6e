"""The rule for leader probes, against claims that keep it and claims that break it."""

from __future__ import annotations

import pytest

from tests.chaos.prober import Claim, broken_claims


@pytest.mark.parametrize(
    "claims",
    [
        [],
        [Claim(0, 1, "n1", 1), Claim(2, 3, "n1", 1), Claim(4, 5, "n2", 2)],
        [Claim(0, 9, "n2", 2), Claim(1, 2, "n1", 1)],  # the first one may have waited at a frozen node's door
        [Claim(0, 1, "n1", 3), Claim(1, 2, "n2", 4), Claim(3, 4, "n1", 5)],
        [Claim(0, 1, "n1", 3), Claim(2, 3, "n2", 1, era=1)],  # another cluster
    ],
)
def test_terms_that_rise_are_fine(claims: list[Claim]) -> None:
    assert broken_claims(claims) == []


@pytest.mark.parametrize(
    ("claims", "what"),
    [
        ([Claim(0, 1, "n2", 2), Claim(2, 3, "n1", 1)], "older term"),
        ([Claim(0, 1, "n2", 2), Claim(0.5, 5, "n2", 2), Claim(2, 3, "n1", 1)], "older term"),
        ([Claim(0, 1, "n1", 1), Claim(2, 3, "n2", 1)], "two leaders"),
        ([Claim(0, 9, "n1", 1), Claim(2, 3, "n2", 1)], "two leaders"),
        ([Claim(0, 1, "n1", 1), Claim(0, 1, "n2", 2, era=1), Claim(2, 3, "n1", 1, era=1)], "older term"),
    ],
)
def test_a_deposed_leader_that_is_confirmed_is_found(claims: list[Claim], what: str) -> None:
    for order in (claims, claims[::-1]):
        assert any(what in finding for finding in broken_claims(order))
