"""The encode stage: frames in, latent bytes out. Each forward pass holds one chunk of one clip. It does not use Ray.

Moments become float32, are scaled, and are then cast: `latent = (z - shift) * scale` with the values of the Spec, so
the scaling can be undone. A sampled posterior draws float32 noise on the CPU for the whole latent, seeded by the row's
id, and uses the chunk's slice of it. So the noise does not depend on how the clip was cut.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial

import torch

import vae
from latentmill.format import DTYPES
from pipeline.errors import ConfigError
from pipeline.guard.alone import DiedAloneError
from pipeline.guard.deadline import deadline
from pipeline.guard.device import NoRoomError, is_of_the_device
from pipeline.guard.starts import Seat, Told, card_of, start_encoder
from pipeline.guard.strikes import MAX_STRIKES, Guard, attempt
from pipeline.receipts import Receipt, Record, RejectionReceipt
from pipeline.records import Chunk, Latent, Rejection
from pipeline.settings.spec import Spec, other_encoder
from pipeline.stages.suspects import Court, NonfiniteLatentError, or_die
from vae.engines import complaint, cudnn_version, device_name, make_deterministic
from vae.kernels.selfcheck import SMALL, check
from vae.turns import Compute, Courier, Finish, Turns

SELFCHECK_BOUND = 0.05
"""Largest relative L2 error of the compute dtype against float32 that an encoder may show at start. bfloat16 shows
about 0.01 on random weights; the cuDNN release that was silently wrong (pytorch#163539) is off by more than 1."""


class Encoder:
    """Load the VAE, check it, then turn chunks into latents."""

    def __init__(
        self,
        where: str,
        spec: Spec,
        *,
        device: str = "cpu",
        threads: int = 1,
        largest: tuple[int, int, int] | None = None,
    ) -> None:
        """Load the VAE and run its self-check.

        Args:
            where: the VAE, as for `vae.load_vae`.
            spec: the weights must be the ones it names.
            device: "cpu" or "cuda".
            threads: torch threads on a CPU. Fixed, since the last bits of a latent depend on it.
            largest: (T, H, W) of the largest planned window; checked at this shape on CUDA.

        Raises:
            ConfigError: the weights are not those of the Spec, the self-check failed, or the GPU is too old.
            NoRoomError: memory or the device failed.
        """
        make_deterministic(threads, float32=spec.latent.dtype == "float32")
        self._spec = spec
        self._device = torch.device(device)
        try:
            if device == "cuda" and (reason := complaint(spec.latent.dtype, torch.cuda.get_device_capability())):
                raise ConfigError(reason)
            self._courier = Courier(self._device)
            self._vae = self._load(where)
            found = check(self._vae, largest)
        except (RuntimeError, MemoryError) as error:
            if not is_of_the_device(error):
                raise
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            raise NoRoomError(
                f"no encoder for clips of {'x'.join(map(str, largest or SMALL))} in {spec.latent.dtype} can start on "
                f"{device_name(device)}: {reason}. Try a smaller --height and --width, a larger device, or fewer "
                "encoders on each (--gpus-per-encoder 1)"
            ) from None
        if not found.error <= SELFCHECK_BOUND:
            raise ConfigError(
                f"self-check: {spec.latent.dtype} differs from float32 by {found.error:.3g} relative at {largest} on "
                f"{device_name(device)}, allowed {SELFCHECK_BOUND}: torch {torch.__version__}, cuDNN {cudnn_version()}"
            )
        self.told = Told(device=device_name(device), digest=found.digest)

    def _load(self, where: str) -> vae.VideoVAE:
        """Load the VAE with the normalisation of the Spec. Raises ConfigError."""
        spec = self._spec
        dtype: torch.dtype = getattr(torch, spec.latent.dtype)
        loaded = vae.load_vae(where, dtype=dtype, device=str(self._device), schedule=spec.latent.schedule)
        if reason := other_encoder(loaded.info.schedule, spec.vae["schedule"]):
            raise ConfigError(f"vae {where}: {reason}")
        if (found := loaded.info.weights_sha256) != (wanted := spec.vae["weights_sha256"]):
            raise ConfigError(f"vae {where} has weights {found}, the spec says {wanted}: it changed while the job ran")
        return loaded.normalised(spec.vae["scale"], spec.vae["shift"])  # may not be the checkpoint's

    def __call__(self, chunk: Chunk) -> Latent:
        """Encode one chunk: uint8 frames [T, H, W, 3] to the stored bytes of its body's latent.

        Raises:
            NonfiniteLatentError: NaN or infinity in the latent.
        """
        return self.start(chunk)()()

    def start(self, chunk: Chunk) -> Compute[Latent]:
        """Begin to copy the frames to the device. The result computes; what that returns finishes (`vae.turns`)."""
        receive = self._courier.send(chunk.frames)

        def compute() -> Finish[Latent]:
            start = time.perf_counter()
            moments = self._try(chunk, receive)
            if moments is None:  # a forward holds one clip, so there is nothing to halve
                torch.cuda.empty_cache()
                moments = self._moments(chunk, receive)
            return partial(self._finish, chunk, moments, time.perf_counter() - start)

        return compute

    def _try(self, chunk: Chunk, receive: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Encode, or return None if memory runs out. The exception, whose traceback holds tensors, is gone by then."""
        try:
            return self._moments(chunk, receive)
        except torch.OutOfMemoryError:
            return None

    @torch.inference_mode()
    def _moments(self, chunk: Chunk, receive: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return float32 moments [1, 2C, T', H', W'] on the CPU."""
        pixels_BCTHW = receive().permute(3, 0, 1, 2).unsqueeze(0)
        with vae.kernels.statistics(exact=self._spec.vae.get("exact_statistics", False)):
            return self._courier.fetch(self._vae.encode_windows(pixels_BCTHW, chunk.windows, chunk.num_context).float())

    @torch.inference_mode()
    def _finish(self, chunk: Chunk, moments: torch.Tensor, encode_seconds: float) -> Latent:
        """Return the latent: scaled, unless moments are stored."""
        latent = self._latent(chunk, moments)
        if not torch.isfinite(latent).all():
            raise NonfiniteLatentError(f"NaN or infinity in the latent, computed in {self._spec.latent.dtype}")
        return Latent(
            id=chunk.id,
            payload=to_bytes(latent, self._spec.latent.store_dtype),
            shape=tuple(latent.shape),
            dtype=self._spec.latent.store_dtype,
            facts=chunk.facts,
            decode_seconds=chunk.decode_seconds,
            encode_seconds=encode_seconds,
        )

    def _latent(self, chunk: Chunk, moments: torch.Tensor) -> torch.Tensor:
        """Return float32 [C, T', H', W']."""
        if self._spec.latent.posterior == "moments":
            return moments[0]
        posterior = vae.DiagonalGaussianDistribution(moments)
        if self._spec.latent.posterior == "sample":
            noise = self._noise(chunk, posterior.mean.shape)
            return self._vae.scale(posterior.mean + posterior.std * noise)[0]
        return self._vae.scale(posterior.mean)[0]

    def _noise(self, chunk: Chunk, shape: torch.Size) -> torch.Tensor:
        """Return float32 [1, C, T', H', W']: the chunk's slice of the clip's noise."""
        _, channels, frames, height, width = shape
        digest = hashlib.sha256(f"{self._spec.latent.seed}/{chunk.facts.id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        noise = torch.randn(1, channels, chunk.clip_latent_frames, height, width, generator=generator)
        return noise[:, :, chunk.latent_start : chunk.latent_start + frames]


class EncodeStage:
    """Encode chunks under the guard; receipts pass through."""

    def __init__(
        self,
        make_encoder: Callable[[], Callable[[Chunk], Latent]],
        guard: Guard,
        deadline: float,
        pool: int = 1,
        *,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        """Start the encoder of a pool that begins with `pool` encoders; it raises what `start_encoder` raises.

        `make_encoder` must pickle: a suspect chunk is encoded by a separate encoder in a child process. With more than
        one thread, chunks overlap: one computes while others are copied to the device or finish (`vae.turns`).
        """
        seat = Seat(name=guard.me(), card=card_of(device))
        encoder = start_encoder(make_encoder, guard, seat, pool, deadline)
        self._turns = Turns(encoder.start if threads > 1 and isinstance(encoder, Encoder) else _in_one_step(encoder))
        self._court = Court(make_encoder, encoder, guard, seat, deadline)
        self._guard = guard
        self._deadline = deadline

    def __call__(self, record: Record) -> Latent | Receipt:
        """Encode a chunk. A latent that is not finite, or a chunk that kills its encoder, becomes a Rejection."""
        if not isinstance(record, Chunk):
            assert isinstance(record, Receipt)
            return record
        try:
            return self._turns(record, partial(self._guarded, record))
        except NonfiniteLatentError as error:
            return _refuse(record, "nonfinite", str(error))
        except DiedAloneError as error:
            return _refuse(record, "encode_timeout" if error.timed_out else "encode_crashed", str(error), verdict=True)

    def _guarded(self, chunk: Chunk, compute: Compute[Latent]) -> Finish[Latent]:
        """Compute as one attempt at this chunk, within its deadline; a suspect is encoded alone.

        Both begin with the chunk's turn: no chunk that waits for the device is blamed for the one that has it.
        """
        key = f"{chunk.id.shard}/{chunk.id.video}/{chunk.id.clip}/{chunk.id.chunk}/encode"
        with attempt(self._guard, key) as strikes:
            if strikes >= MAX_STRIKES and (latent := self._court.judge(chunk, strikes)):
                return lambda: latent
            with deadline(self._deadline):
                finish = or_die(compute, chunk)
        return partial(or_die, finish, chunk)


def _in_one_step(encode: Callable[[Chunk], Latent]) -> Callable[[Chunk], Compute[Latent]]:
    """Return a function as steps of `vae.turns` of which only the second does anything."""

    def start(chunk: Chunk) -> Compute[Latent]:
        def compute() -> Finish[Latent]:
            latent = encode(chunk)
            return lambda: latent

        return compute

    return start


def _refuse(chunk: Chunk, reason: str, message: str, *, verdict: bool = False) -> Receipt:
    facts = chunk.facts
    rejection = Rejection(
        reason=reason, stage="encode", message=message, key=facts.key, uri=facts.uri, start=facts.start
    )
    return RejectionReceipt(id=chunk.id, rejection=rejection, verdict=verdict)


def to_bytes(latent: torch.Tensor, store_dtype: str) -> bytes:
    """Cast a float32 latent and return its bytes, little-endian, C order. bfloat16 travels as the bits of uint16."""
    cast = latent.to(getattr(torch, store_dtype)).contiguous()
    array = cast.view(torch.uint16).numpy() if cast.dtype == torch.bfloat16 else cast.numpy()
    return bytes(array.astype(DTYPES[store_dtype], copy=False).tobytes())
