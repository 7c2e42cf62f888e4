"""Law: encoders that make other bits of the same frames are told apart, and the record of a run names their devices."""

from __future__ import annotations

from pipeline.guard.starts import Told
from pipeline.guard.strikes import Strikes


def test_equal_encoders_are_told_once_and_unequal_ones_are_news() -> None:
    strikes = Strikes()
    first, twin, other = Told("A100", "0" * 64), Told("A100", "0" * 64), Told("H100", "1" * 64)
    for told in (None, first, twin, other, other):
        strikes.started(told)
    known, news = strikes.encoders()
    assert known == [first, other]
    (line,) = news
    assert "on H100 makes other bits of the same frames than the first one, on A100" in line
    assert strikes.encoders() == ([first, other], [])
