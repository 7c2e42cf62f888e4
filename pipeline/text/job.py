"""TextJob: the settings of one run of `latentmill text`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from latentmill.format import TEXT_NAME
from pipeline.errors import ConfigError
from pipeline.settings.job import Workers
from pipeline.text.clean import Cleaning


@dataclass(frozen=True, kw_only=True, slots=True)
class TextWorkers:
    """Worker processes. They do not change the output, except that `threads_per_encoder` may change its last bits."""

    encoders: str = "auto"
    """Number of encode actors, or `min:max`. auto: one per GPU; without GPUs, one per CPU, as far as memory holds
    their weights."""
    gpus_per_encoder: float | None = None
    """GPUs per encode actor. Default: 1 if the cluster has any, else 0."""
    threads_per_encoder: int = 1
    """Torch threads (and reserved CPUs) of an encoder on a CPU."""
    ray_address: str = "local"
    """`local` starts a separate local Ray; `auto` or an address joins a cluster, whose nodes all have the encoder."""
    object_store_gb: float | None = None
    """Memory for files on their way to the output, with a local Ray. Default: Ray's, 30 percent of the machine's."""

    def of_a_job(self) -> Workers:
        """Return them as the workers of a Job. Raises ConfigError if they are wrong."""
        return Workers(
            encoders=self.encoders,
            gpus_per_encoder=self.gpus_per_encoder,
            threads_per_encoder=self.threads_per_encoder,
            ray_address=self.ray_address,
            object_store_gb=self.object_store_gb,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TextJob:
    """Encode the captions of an output into text embeddings."""

    output: str
    """Path or URL that `latentmill encode` wrote to. Its committed shards get their text; the same command again
    continues, also with shards that were committed since."""
    encoder: str
    """Folder of a text encoder in the form of `transformers`: config.json and *.safetensors. Code in it never runs."""
    tokenizer: str = ""
    """Folder of its tokenizer. Default: the encoder's folder."""
    name: str = ""
    """Name of the text: it is written to text/NAME. Default: the encoder's model type, such as `t5`."""
    max_length: int | None = None
    """Most tokens of a caption, special tokens included; what is longer is cut, and its row says so.
    Default: 512, or less where the encoder or its tokenizer takes less."""
    pad_tokens: bool = False
    """Fill up every caption to --max-length with padding tokens, which the encoder reads as if they were text.
    CogVideoX learned from such embeddings (--max-length 226); other models want none."""
    clean: Cleaning = "none"
    """What is done to a caption before it is encoded. wan: mend broken encodings, resolve HTML entities, and make one
    space of all white space, as Wan's own code, diffusers, Automodel and musubi-tuner do; needs ftfy. none: nothing, as
    FastVideo and CogVideo do."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type in which the encoder computes, and of the stored embeddings."""
    layer: str = "last"
    """last: the encoder's output, after its last norm. A number N: `hidden_states[N]` of transformers; 0 is the input
    of the first layer, -2 the output of the last but one. Write it with `=` if it is negative: --layer=-2."""
    caption_column: str = "caption"
    """What to encode: a text column of the output, or a field of `extra_json`."""
    drop_empty: bool = False
    """Leave out rows whose caption is missing, empty or white space. Without it, they get the empty prompt."""
    strict: bool = False
    """Refuse to begin if more than a tenth of the captions are empty. Without it, the summary warns."""
    batch_size: int = 1
    """Captions in one forward pass; all of them have the same number of tokens, so none is padded.
    1: the embedding of a caption depends on nothing else. More helps where many captions of a shard have as many tokens
    as others (CLIP cuts most to 77); then the last bits also depend on the other captions of the shard."""
    allow_pickle: bool = False
    """Load weights from pytorch_model*.bin where there is no *.safetensors."""
    workers: TextWorkers = field(default_factory=TextWorkers)
    grace: float = 60.0
    """Seconds to finish open work after SIGTERM. Then the command exits with code 75, which means: run it again."""
    log_json: bool = False
    """Log to stderr as JSON, one object a line, with an event for each pass, shard and progress report."""
    dry_run: bool = False
    """Print what would be done, and write nothing."""

    def __post_init__(self) -> None:
        if self.name and not TEXT_NAME.fullmatch(self.name):
            raise ConfigError(
                f"--name must be up to 64 letters, digits, - and _, and begin with none of these two, got {self.name!r}"
            )
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"--max-length must be at least 1 token, got {self.max_length}")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.layer != "last" and not self.layer.removeprefix("-").isdecimal():
            raise ConfigError(f"--layer must be `last` or a whole number, got {self.layer!r}")
        self.workers.of_a_job()
