"""The order of samples: each once an epoch, for any number of processes and from any start."""

from atrousx.training.order import Order
from tests.optional import given, settings, st


def steps(length, batch_size, parts, start=0, stop=5, seed=0):
    """Returns the keys of each step, of all parts in their order."""
    ordered = [
        list(Order(length, batch_size, parts, (part,), seed, start, stop)) for part in range(parts)
    ]
    return [[key for own in ordered for key in own[step]] for step in range(stop - start)]


@given(
    length=st.integers(1, 9),
    size=st.integers(1, 3),
    parts=st.integers(1, 4),
    start=st.integers(0, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_steps_depend_on_neither_parts_nor_start(length, size, parts, start, seed):
    batch = size * parts
    whole = steps(length, batch, 1, seed=seed)
    assert steps(length, batch, parts, start, seed=seed) == whole[start:]
    keys = [key for step in whole for key in step]
    for epoch in range(len(keys) // length):
        own = keys[epoch * length : (epoch + 1) * length]
        assert {key[0] for key in own} == {epoch}
        assert sorted(key[1] for key in own) == list(range(length))


def test_one_process_can_have_several_parts():
    both = list(Order(6, 4, 2, (0, 1), 0, 0, 3))
    assert len(both) == len(Order(6, 4, 2, (0, 1), 0, 0, 3)) == 6
    assert [a + b for a, b in zip(both[::2], both[1::2], strict=True)] == steps(6, 4, 1, stop=3)


def test_epochs_and_seeds_differ():
    first, second = steps(50, 50, 1, stop=2)
    assert [index for _, index in first] != [index for _, index in second]
    assert steps(50, 50, 1, seed=1) != steps(50, 50, 1, seed=2)
