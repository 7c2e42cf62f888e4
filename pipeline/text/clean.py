"""Clean captions as the code of a model does before its tokenizer."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from pipeline.errors import ConfigError

Cleaning = Literal["none", "wan"]


@lru_cache
def cleaner(kind: str) -> Callable[[str], str]:
    """Return the function that cleans a caption.

    none leaves it as it is. wan mends broken encodings (ftfy, which also straightens curly quotes), resolves HTML
    entities twice, and makes one space of all white space: `prompt_clean` of diffusers' WanPipeline
    (pipeline_wan.py, 0.42), which is that of Wan's own code (wan/modules/tokenizers.py, clean="whitespace").

    Raises:
        ConfigError: ftfy is not installed, or the kind is not known.
    """
    if kind == "none":
        return str
    if kind != "wan":
        raise ConfigError(f"clean must be none or wan, got {kind!r}: a newer latentmill has made this text")
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise ConfigError(f"--clean {kind} needs ftfy: pip install ftfy") from error

    def wan(caption: str) -> str:
        return " ".join(html.unescape(html.unescape(fix_text(caption))).split())

    return wan
