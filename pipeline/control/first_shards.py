"""Notice early that a run makes nothing: the wrong addresses, or clips that are too long for every video."""

from __future__ import annotations

from collections import Counter

from pipeline.records import CompleteShard

MIN_SHARDS = 3
MIN_CLIPS = 100
"""A run is given up when so many shards and so many clips of it ended without a latent, for one reason."""


class FirstShards:
    """The shards that a run completed until its first latent."""

    def __init__(self) -> None:
        self._shards = 0
        self._reasons: Counter[str] = Counter()
        self._example = ""
        self._has_latents = False

    def add(self, shard: CompleteShard) -> None:
        """Count a shard that is complete."""
        self._has_latents |= bool(shard.latents)
        if not self._has_latents:
            self._shards += 1
            for rejection in shard.rejections.values():
                self._reasons[rejection.reason] += 1
                self._example = rejection.message

    def verdict(self) -> str:
        """Return why the run is to be given up, or ""."""
        clips = self._reasons.total()
        if self._has_latents or self._shards < MIN_SHARDS or clips < MIN_CLIPS or len(self._reasons) > 1:
            return ""
        (reason,) = self._reasons
        return (
            f"the first {self._shards} shards gave no latent: all {clips} clips were rejected as {reason} (the last: "
            f"{self._example}). If that is right for them, --keep-going goes on; once the cause is mended, "
            f"--retry-rejected {reason} tries them again"
        )
