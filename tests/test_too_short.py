"""Laws: who refuses a clip as too short says how many frames there are, and the hint counts what a smaller number would
admit, whichever stage refused it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pipeline.decode import decode_clip, measure, probe, too_short
from pipeline.errors import ClipTooShortError
from pipeline.settings.clip_rule import ClipRule
from pipeline.stages.clip_grid import plan_clips
from tests.videos import make_video


@pytest.mark.parametrize("fps", ["8", "30000/1001", "native"])
def test_planning_and_decoding_name_the_same_number_of_frames(fps: str) -> None:
    """One second of 24 frames; from 1/4 s on in a table's range."""
    data = make_video(num_frames=24)
    rule = ClipRule(num_frames=49, fps=fps, height=96, width=128)
    for start, fitting in ((Fraction(0), {"8": 8, "native": 24}.get(fps, 30)), (Fraction(1, 4), None)):
        (clip,) = plan_clips(probe(data), None, rule, start=start)
        with pytest.raises(ClipTooShortError) as decoding:
            decode_clip(data, clip.spec)
        with pytest.raises(ClipTooShortError) as planning:
            plan_clips(probe(data), measure(data), rule, start=start)
        found = {too_short.num_fitting(str(error.value)) for error in (decoding, planning)}
        assert len(found) == 1
        if fitting is not None:
            assert found == {fitting}


def test_the_hint_counts_what_smaller_numbers_would_admit() -> None:
    """27 clips; the VAE takes 1 + 4k frames."""

    def accepted(n: int) -> int | None:
        return 1 + (n - 1) // 4 * 4

    assert (
        too_short.hint({8: 20, 6: 1, 4: 5, 0: 1}, accepted)
        == "--num-frames 5 would admit 21, --num-frames 1 would admit 26"
    )
    assert too_short.hint({}, accepted) == ""
    assert too_short.num_fitting("the range from 3 s to 2 s holds no frame") is None
