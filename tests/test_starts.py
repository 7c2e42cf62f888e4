"""Laws: an encoder that fails for good leaves where others stand, and ends the run where none will; encoders that make
other bits of the same frames are told apart, and the record of a run names their devices."""

from __future__ import annotations

from pipeline.guard.starts import LONGEST_WAIT, MAX_FAILURES, PATIENCE, Seat, Told, Verdict
from pipeline.guard.strikes import Strikes

A, B = Seat(name="a", card="host cuda:0"), Seat(name="b", card="host cuda:1")


def stand(strikes: Strikes, seat: Seat) -> None:
    assert strikes.starting(seat, 2) == "try"
    strikes.started(seat, None)


def die(strikes: Strikes, seat: Seat, pool: int = 2) -> Verdict:
    """It dies at each start, as often as it may. Return what it does in the end."""
    verdicts = [strikes.starting(seat, pool) for _ in range(MAX_FAILURES + 1)]
    assert verdicts[:-1] == ["try"] * MAX_FAILURES
    return verdicts[-1]


def test_one_that_dies_at_each_start_is_kept_out_while_another_stands() -> None:
    strikes = Strikes()
    stand(strikes, A)
    assert die(strikes, B) == "keep out"
    _, (first, line), num_left = strikes.encoders()
    assert first == "no encoder on host cuda:1 for now: it died while it started", "once"
    assert line.startswith("no encoder on host cuda:1: 3 starts in a row failed, the last: its process died")
    assert num_left == 0, "it never had a block"
    assert strikes.look(B, 2, 5.0) == "keep out"
    assert strikes.encoders()[1] == [], "said once"
    strikes.new_pass()
    assert strikes.look(B, 2, 6.0) == "raise", "its pass is over"


def test_one_that_stood_before_leaves_and_its_blocks_are_lost() -> None:
    strikes = Strikes()
    stand(strikes, A)
    stand(strikes, B)
    assert die(strikes, B) == "leave"
    assert strikes.encoders()[2] == 1
    strikes.new_pass()
    assert strikes.encoders()[2] == 0


def test_the_last_one_that_stood_tells_of_the_end() -> None:
    strikes = Strikes()
    stand(strikes, A)
    stand(strikes, B)
    assert die(strikes, A) == "leave"
    assert die(strikes, B) == "answer"
    assert "3 encoders in a row failed while they started on host cuda:1" in strikes.why_out(B)


def test_those_that_have_begun_are_waited_for() -> None:
    strikes = Strikes()
    strikes.starting(B, 2)
    assert die(strikes, A) == "wait"
    assert strikes.look(A, 2, LONGEST_WAIT - 1) == "wait"
    assert strikes.look(A, 2, LONGEST_WAIT) == "raise", "it was never heard of again"


def test_where_each_raises_the_run_ends_at_once() -> None:
    strikes = Strikes()
    strikes.starting(A, 2)
    assert strikes.start_failed(A, "no room", 2) == "try again"
    strikes.starting(B, 2)
    assert strikes.start_failed(B, "no room", 2) == "raise"


def test_one_alone_that_raises_ends_the_run_at_once() -> None:
    strikes = Strikes()
    strikes.starting(A, 1)
    assert strikes.start_failed(A, "self-check", 1) == "raise"


def test_one_that_raises_while_another_stands_is_tried_again() -> None:
    strikes = Strikes()
    stand(strikes, A)
    for last in [False] * (MAX_FAILURES - 1) + [True]:
        assert strikes.starting(B, 2) == "try"
        assert strikes.start_failed(B, "self-check", 2) == ("keep out" if last else "try again")
    assert "the last: self-check" in strikes.encoders()[1][-1]


def test_those_of_the_pool_that_have_not_begun_are_waited_for_a_while() -> None:
    strikes = Strikes()
    assert die(strikes, B) == "wait"
    assert strikes.look(B, 2, PATIENCE - 1) == "wait"
    assert strikes.look(B, 2, PATIENCE) == "raise"
    stand(strikes, A)
    assert strikes.look(B, 2, 2.0) == "keep out"


def test_failures_count_in_a_row_and_on_one_card() -> None:
    strikes = Strikes()
    stand(strikes, A)
    for _ in range(MAX_FAILURES):
        strikes.starting(B, 2)
    strikes.started(B, None)
    assert [strikes.starting(B, 2) for _ in range(MAX_FAILURES)] == ["try"] * MAX_FAILURES
    moved = Seat(name=B.name, card="host cuda:2")
    assert strikes.starting(moved, 2) == "try"


def test_a_broken_card_stays_broken_in_later_passes() -> None:
    strikes = Strikes()
    stand(strikes, A)
    stand(strikes, B)
    strikes.broken(B, "dies of noise")
    assert strikes.starting(B, 2) == "leave"
    strikes.new_pass()
    stand(strikes, A)
    assert strikes.starting(Seat(name="c", card=B.card), 2) == "keep out"
    assert sum("host cuda:1: dies of noise" in line for line in strikes.encoders()[1]) == 2


def test_equal_encoders_are_told_once_and_unequal_ones_are_news() -> None:
    strikes = Strikes()
    first, twin, other = Told("A100", "0" * 64), Told("A100", "0" * 64), Told("H100", "1" * 64)
    for told in (None, first, twin, other, other):
        strikes.started(A, told)
    known, news, _ = strikes.encoders()
    assert known == [first, other]
    (line,) = news
    assert "on H100 makes other bits of the same frames than the first one, on A100" in line
    assert strikes.encoders() == ([first, other], [], 0)
