"""Every mutant still changes what it is about: whoever changes that line changes its mutant with it."""

from __future__ import annotations

import pytest

from tests.mutants.__main__ import ROOT, noted
from tests.mutants.fuzzed import FUZZED
from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS


@pytest.mark.parametrize("mutant", [*MUTANTS, *FUZZED], ids=lambda mutant: mutant.name)
def test_what_a_mutant_changes_stands_once_in_its_file(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.before) == 1, "change it in tests/mutants/ as well"


def test_the_page_is_of_the_mutants_that_there_are() -> None:
    assert set(noted()) <= {mutant.name for mutant in FUZZED}
