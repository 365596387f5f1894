"""The near cache's protocol in every order of steps; and the models find each thing that could be left out."""

import pytest

from tests.near import model, model_many
from tests.near.model import explore

# Fewer states than these, and something in the model can no longer happen.
MIN_STATES = 25_000
MIN_STATES_OF_MANY = 5_000


def test_no_order_of_steps_leads_to_a_stale_read() -> None:
    states, way = explore(model.State(), model.next_states, "")
    print(f"{states} states, leases of {model.LEASE} beats and fences of {model.FENCE}")
    assert way == []
    assert states >= MIN_STATES


@pytest.mark.parametrize("variant", model.BROKEN)
def test_a_stale_read_is_found_where_the_protocol(variant: str) -> None:
    states, way = explore(model.State(), model.next_states, variant)
    print(states, way)
    assert "was read although" in way[-1]


def test_no_order_of_steps_tears_several_keys_apart() -> None:
    states, way = explore(model_many.State(), model_many.next_states, "")
    print(f"{states} states")
    assert way == []
    assert states >= MIN_STATES_OF_MANY


@pytest.mark.parametrize("variant", model_many.BROKEN)
def test_keys_torn_apart_are_found_where_it(variant: str) -> None:
    states, way = explore(model_many.State(), model_many.next_states, variant)
    print(states, way)
    assert "were read together" in way[-1]
