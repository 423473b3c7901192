from hypothesis import given
from hypothesis import strategies as st

from timesplit.forwarder.numbering import Count, Numbering

RUN, LATER = b"run....1", b"run....2"


def numbering(*seqs: int, from_start: bool = True, made: int | None = None) -> Numbering:
    numbers = Numbering(from_start=from_start)
    for seq in seqs:
        numbers.note(seq, RUN)
    numbers.made = made
    return numbers


def test_nothing_is_lost_while_the_numbers_have_no_gap() -> None:
    assert numbering(0, 1, 2).count(RUN) == Count(written=3, forwarded=3, dropped=0)


def test_a_gap_is_a_loss() -> None:
    assert numbering(0, 1, 4).count(RUN) == Count(written=5, forwarded=3, dropped=2)


def test_the_first_spans_can_be_lost_too() -> None:
    assert numbering(2).count(RUN) == Count(written=3, forwarded=1, dropped=2)


def test_of_a_worker_older_than_the_forwarder_the_first_spans_went_elsewhere() -> None:
    assert numbering(100, 102, from_start=False).count(RUN) == Count(written=3, forwarded=2, dropped=1)


def test_the_last_spans_are_missed_once_the_worker_says_how_many_it_made() -> None:
    assert numbering(0, 1).count(RUN).dropped == 0
    assert numbering(0, 1, made=5).count(RUN) == Count(written=5, forwarded=2, dropped=3)


def test_a_worker_that_does_not_number_its_spans_says_nothing_of_losses() -> None:
    numbers = Numbering(from_start=True)
    numbers.note(None, RUN)

    assert numbers.count(RUN) == Count(written=None, forwarded=1, dropped=None)


def test_requests_that_no_run_marks_leave_no_gap() -> None:
    numbers = Numbering(from_start=True)
    for seq, key in enumerate([None, RUN, None, RUN, None]):
        numbers.note(seq, key)

    assert numbers.count(RUN) == Count(written=2, forwarded=2, dropped=0)


def test_a_loss_is_counted_for_the_run_before_it() -> None:
    numbers = Numbering(from_start=True)
    for seq in (2, 3, 5):
        numbers.note(seq, RUN)
    for seq in (10, 11, 13):
        numbers.note(seq, LATER)
    numbers.made = 16

    assert numbers.count(RUN) == Count(written=3 + 2 + 1 + 4, forwarded=3, dropped=7)
    assert numbers.count(LATER) == Count(written=3 + 1 + 2, forwarded=3, dropped=3)


@given(
    made=st.lists(st.tuples(st.sampled_from([RUN, LATER, None]), st.booleans()), min_size=1),
    from_start=st.booleans(),
    ended=st.booleans(),
    data=st.data(),
)
def test_whatever_order_they_come_in_each_lost_number_is_counted_once(
    made: list[tuple[bytes | None, bool]], from_start: bool, ended: bool, data: st.DataObject
) -> None:
    arrived = {seq: key for seq, (key, lost) in enumerate(made) if not lost}
    numbers = Numbering(from_start=from_start)
    for seq in data.draw(st.permutations(list(arrived))):
        numbers.note(seq, arrived[seq])
    numbers.made = len(made) if ended else None

    counts = [numbers.count(key) for key in (RUN, LATER)]

    assert [count.forwarded for count in counts] == [
        list(arrived.values()).count(key) for key in (RUN, LATER)
    ]
    if any(arrived.values()):
        first = 0 if from_start else min(arrived)
        last = len(made) if ended else max(arrived) + 1
        lost = sum(seq not in arrived for seq in range(first, last))
        assert sum(count.dropped or 0 for count in counts) == lost
    for count in counts:
        assert count.written is None or count.written == count.forwarded + (count.dropped or 0)
