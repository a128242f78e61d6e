"""A node's page of metrics, read with the official parser."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster import Cluster

# A histogram's and a counter's samples carry a suffix behind the family's name.
SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_created")


class Page:
    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __getitem__(self, name: str) -> float:
        return self.of(name)

    def of(self, name: str, **labels: str) -> float:
        """The one sample with this name and these labels."""
        return self.samples[name, tuple(sorted(labels.items()))]

    def names(self) -> set[str]:
        """Names as a query would use them."""
        return {name for name, _ in self.samples}


def page(cluster: Cluster, node: str) -> Page:
    answer = cluster.request(node, "GET", "/metrics")
    assert answer.status == 200
    return Page(answer.body.decode())
