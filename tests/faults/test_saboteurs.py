"""Each planted fault is caught; `make faults` plants them, too, and counts."""

import pytest
import saboteurs


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("name", [name for name, saboteur in saboteurs.SABOTEURS.items() if saboteur.by])
def test_a_saboteur_is_caught(name):
    """Those that a crash catches need a process that may fork: `make faults` has them."""
    assert saboteurs.is_caught(name)
