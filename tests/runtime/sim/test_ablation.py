"""Ablations of the policy: every variant runs, and says what its part is worth."""

import pytest

from drawloom.runtime.sim.ablation import VARIANTS, ablate, run_variant
from drawloom.runtime.sim.experiment import Scenario

SMALL = Scenario("swe", pressure=0.4, seeds=1, programs=6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_ends_every_program(variant: str) -> None:
    assert len(run_variant(SMALL, variant, 0).ended) == 6


def test_figures_are_given_for_each_variant() -> None:
    found = ablate(SMALL, ["drawloom", "order: by arrival"])
    assert list(found) == ["drawloom", "order: by arrival"]
    assert all(row["programs"] == 6 for row in found.values())
