"""The near cache's protocol in every order of steps; and the models find the fault in each broken variant."""

import pytest

from tests.near import model, model_many
from tests.near.model import explore

# With fewer states than these, some step of the model can no longer happen.
MIN_STATES = 25_000
MIN_STATES_OF_MANY = 5_000


def test_no_order_of_steps_leads_to_a_stale_read() -> None:
    states, path = explore(model.State(), model.next_states, "")
    print(f"{states} states, leases of {model.LEASE} beats and fences of {model.FENCE}")
    assert path == []
    assert states >= MIN_STATES


@pytest.mark.parametrize("variant", model.BROKEN)
def test_a_stale_read_is_found_if_the_protocol(variant: str) -> None:
    states, path = explore(model.State(), model.next_states, variant)
    print(states, path)
    assert "was read although" in path[-1]


def test_no_order_of_steps_tears_several_keys() -> None:
    states, path = explore(model_many.State(), model_many.next_states, "")
    print(f"{states} states")
    assert path == []
    assert states >= MIN_STATES_OF_MANY


@pytest.mark.parametrize("variant", model_many.BROKEN)
def test_torn_keys_are_found_if_the_reader(variant: str) -> None:
    states, path = explore(model_many.State(), model_many.next_states, variant)
    print(states, path)
    assert "were read together" in path[-1]
