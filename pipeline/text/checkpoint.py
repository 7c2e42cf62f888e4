"""The checkpoint of a text encoder: what its folders hold, and the TextSpec that follows. Loads no weights.

`transformers` reads the folders. Code in a checkpoint never runs (`trust_remote_code` is off), nothing is fetched, and
pickled weights are read only if that was asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.records import canonical_json
from pipeline.text.clean import cleaner
from pipeline.text.job import TextJob
from pipeline.text.spec import TextSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

CONFIG = "config.json"

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
"""Files that decide what a tokenizer does. One of them must be there."""

NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map")
"""Fields of a config.json that do not change what the model computes."""

DEFAULT_LENGTH = 512

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",  # a report of each checkpoint; `load_model` refuses missing weights
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # its threads would compete with the encoders
}
"""The environment in which transformers is imported."""

OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCheckpoint:
    """Where an encoder and its tokenizer are, on every node. It pickles."""

    encoder: Path
    tokenizer: Path
    allow_pickle: bool

    @staticmethod
    def of(job: TextJob) -> TextCheckpoint:
        """Return the checkpoint of a job.

        Raises:
            ConfigError: a folder is missing, or holds no encoder or no tokenizer.
        """
        encoder = Path(job.encoder).expanduser().absolute()
        tokenizer = Path(job.tokenizer).expanduser().absolute() if job.tokenizer else encoder
        if not (encoder / CONFIG).is_file():
            raise ConfigError(f"--encoder {encoder} must be a folder with a {CONFIG}, as transformers saves it")
        if not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
            beside = encoder.with_name(encoder.name.replace("text_encoder", "tokenizer"))
            is_beside = beside != encoder and beside.is_dir() and not job.tokenizer
            hint = f": --tokenizer {beside}?" if is_beside else "; --tokenizer names another folder"
            raise ConfigError(f"{tokenizer} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}){hint}")
        checkpoint = TextCheckpoint(encoder=encoder, tokenizer=tokenizer, allow_pickle=job.allow_pickle)
        checkpoint.weights()
        return checkpoint

    def weights(self) -> list[Path]:
        """Return the files of the weights. Raises ConfigError if there is none that may be read."""
        if (whole := self.encoder / "model.safetensors").is_file():
            return [whole]
        if found := sorted(self.encoder.glob("model-*.safetensors")):
            return found
        pickled = sorted(self.encoder.glob("pytorch_model*.bin"))
        if pickled and not self.allow_pickle:
            raise ConfigError(
                f"--encoder {self.encoder} holds its weights in {pickled[0].name} only, a pickle: convert it to "
                "safetensors, or give --allow-pickle if you trust it"
            )
        if not pickled:
            raise ConfigError(f"--encoder {self.encoder} holds no weights (model*.safetensors)")
        return pickled

    @property
    def weights_bytes(self) -> int:
        """Size of the weights on disk."""
        return sum(path.stat().st_size for path in self.weights())

    def config(self) -> PreTrainedConfig:
        """Return the config as transformers reads it. Raises ConfigError if it does not know the model."""
        with complaint(f"--encoder {self.encoder}"):
            from transformers import AutoConfig

            return AutoConfig.from_pretrained(self.encoder, **OFFLINE)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer. Raises ConfigError if transformers cannot."""
        with complaint(f"the tokenizer in {self.tokenizer}"):
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self.tokenizer, **OFFLINE)

    def digests(self) -> dict[str, str]:
        """Return the sha256 of the config, of the weights, and of the tokenizer.

        That of weights in one file is what sha256sum says.
        """
        config = json.loads((self.encoder / CONFIG).read_text())
        kept = {name: value for name, value in config.items() if name not in NOT_OF_THE_MODEL}
        return {
            "config": hashlib.sha256(canonical_json(kept).encode()).hexdigest(),
            "weights": _of_files(self.weights()),
            "tokenizer": _of_files([path for name in TOKENIZER_FILES if (path := self.tokenizer / name).is_file()]),
        }


def resolve(job: TextJob, checkpoint: TextCheckpoint) -> TextSpec:
    """Return the TextSpec of a job.

    Raises:
        ConfigError: transformers cannot read the checkpoint, the layer or the length does not fit it, or the library
            that cleans captions is missing.
    """
    cleaner(job.clean)
    config, tokenizer, digests = checkpoint.config(), checkpoint.load_tokenizer(), checkpoint.digests()
    text_config = config.get_text_config()
    num_layers = int(text_config.num_hidden_layers)
    if job.pad_tokens and tokenizer.pad_token_id is None:
        raise ConfigError(f"--pad-tokens: the tokenizer of {checkpoint.tokenizer} has no padding token")
    return TextSpec(
        encoder={
            "model_type": config.model_type,
            "width": int(text_config.hidden_size),
            "layers": num_layers,
            "config_sha256": digests["config"],
            "weights_sha256": digests["weights"],
        },
        tokenizer_sha256=digests["tokenizer"],
        max_length=_length(job.max_length, getattr(text_config, "max_position_embeddings", None), tokenizer),
        dtype=job.dtype,
        layer=_layer(job.layer, num_layers),
        caption_column=job.caption_column,
        drop_empty=job.drop_empty,
        batch_size=job.batch_size,
        pad_tokens=job.pad_tokens,
        clean=job.clean,
    )


def _length(asked: int | None, most: int | None, tokenizer: PreTrainedTokenizerBase) -> int:
    if asked is None:
        return min(DEFAULT_LENGTH, most or DEFAULT_LENGTH, int(tokenizer.model_max_length))
    if most is not None and asked > most:
        raise ConfigError(f"--max-length must be at most {most}, the positions of this encoder, got {asked}")
    if asked <= (special := tokenizer.num_special_tokens_to_add()):
        raise ConfigError(f"--max-length must be above {special}, the special tokens of each text, got {asked}")
    return asked


def _layer(asked: str, num_layers: int) -> int | str:
    if asked == "last":
        return asked
    number = int(asked)
    if not -num_layers - 1 <= number <= num_layers:
        raise ConfigError(f"--layer must be `last` or lie in [{-num_layers - 1}, {num_layers}], got {asked}")
    return number % (num_layers + 1)


def _of_files(paths: list[Path]) -> str:
    """Return the sha256 of a file, or of a list of the names and sha256 of several files."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    lines = (f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def complaint(what: str) -> Iterator[None]:
    """Turn what transformers raises into a ConfigError of one line."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        yield
    except ImportError as error:
        if error.name == "transformers":
            raise ConfigError("latentmill text needs transformers: pip install transformers sentencepiece") from error
        raise ConfigError(f"{what} cannot be read: {_first_line(error)}") from error
    except Exception as error:  # transformers raises every kind
        raise ConfigError(f"{what} cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
