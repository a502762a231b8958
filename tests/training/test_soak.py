"""Short forms of the soak; the whole one is `make soak`."""

import pytest

from tests.soak import soak
from tests.training.harness import Project

pytestmark = pytest.mark.alone


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 6])
def test_nothing_is_lost_by_kills(tiny: Project, kills: int) -> None:
    soak(tiny, kills=kills, num_steps=12, seed=kills, name=f"soak-{kills}")
