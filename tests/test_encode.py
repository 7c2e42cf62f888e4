"""Laws: a latent is a function of chunk and Spec; scaled as the Spec says; the same noise however a clip is cut."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import vae
from latentmill.format import DTYPES
from pipeline.control.pools import Pools
from pipeline.errors import ConfigError, EncoderError
from pipeline.guard.device import is_of_the_device
from pipeline.guard.starts import Seat, card_of, control
from pipeline.guard.strikes import MAX_STRIKES, Strikes
from pipeline.output.parts import join
from pipeline.receipts import ClipsReceipt, RejectionReceipt
from pipeline.records import Chunk, Latent
from pipeline.settings.spec import LatentRule
from pipeline.stages.decode_video import Decoder
from pipeline.stages.encode_chunk import Encoder, EncodeStage
from pipeline.stages.suspects import NonfiniteLatentError, or_die
from tests.small import CLIP, HEALTHY, latent, spec, video
from vae.turns import THREADS

INFO = vae.load_vae("tiny").info
EXACT = LatentRule(dtype="float32", store_dtype="float32")


def chunks(latent: LatentRule = EXACT, num_frames: int = 9) -> list[Chunk]:
    clip = replace(CLIP, num_frames=num_frames, fps="24")
    decoder = Decoder(clip=clip, latent=latent, info=INFO, deadline=HEALTHY)
    return [record for record in decoder(video(), Strikes()) if isinstance(record, Chunk)]


def encode(chunk: Chunk, latent: LatentRule) -> np.ndarray:
    made = Encoder("tiny", spec(latent=latent))(chunk)
    array = np.frombuffer(made.payload, DTYPES[made.dtype]).reshape(made.shape)
    return torch.from_numpy(array.copy()).view(torch.bfloat16).float().numpy() if made.dtype == "bfloat16" else array


def reference(chunk: Chunk) -> tuple[vae.VideoVAE, vae.DiagonalGaussianDistribution]:
    torch.set_num_threads(1)  # as the Encoder: another number changes the last bits
    model = vae.load_vae("tiny", dtype=torch.float32)
    return model, model.encode(torch.from_numpy(chunk.frames.copy()).permute(3, 0, 1, 2)[None])


def test_the_mean_is_scaled_as_the_spec_says() -> None:
    (chunk,) = chunks()
    model, posterior = reference(chunk)
    np.testing.assert_allclose(encode(chunk, EXACT), model.scale(posterior.mean)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, tuple(0.1 * i for i in range(1, 17))])
def test_another_normalisation_than_the_checkpoints_is_that_of_the_spec(scale: float | tuple[float, ...]) -> None:
    (chunk,) = chunks()
    _, posterior = reference(chunk)
    rule = spec(latent=EXACT)
    rule = replace(rule, vae=rule.vae | {"scale": scale, "shift": 0.25})
    made = Encoder("tiny", rule)(chunk)
    found = np.frombuffer(made.payload, "<f4").reshape(made.shape)
    factors = np.reshape(scale, (-1, 1, 1, 1))
    np.testing.assert_allclose(found, (posterior.mean[0].numpy() - 0.25) * factors, rtol=1e-5, atol=1e-6)


def test_moments_are_stored_unscaled() -> None:
    (chunk,) = chunks()
    _, posterior = reference(chunk)
    moments = encode(chunk, replace(EXACT, posterior="moments"))
    np.testing.assert_allclose(moments, posterior.parameters[0], rtol=1e-5, atol=1e-6)


def test_a_sample_is_fixed_by_seed_and_row() -> None:
    (chunk,) = chunks()
    rule = replace(EXACT, posterior="sample")
    first = encode(chunk, rule)
    np.testing.assert_array_equal(encode(chunk, rule), first)
    assert not np.array_equal(encode(chunk, replace(rule, seed=1)), first)
    assert not np.array_equal(encode(replace(chunk, facts=replace(chunk.facts, id="other")), rule), first)


def test_a_sample_has_the_same_noise_however_the_clip_is_cut() -> None:
    """With context all the way back the moments are exact, so any difference would be the noise."""
    rule = replace(EXACT, posterior="sample")
    (whole,) = chunks(rule, num_frames=25)
    cut = chunks(replace(rule, chunk_windows=1, context="9"), num_frames=25)
    assert len(cut) == 3
    encoder = Encoder("tiny", spec(latent=rule))
    assert join([encoder(chunk) for chunk in cut]).payload == encoder(whole).payload


@pytest.mark.parametrize("store_dtype", ["bfloat16", "float16", "float32"])
def test_store_dtypes_round_the_same_latent(store_dtype: str) -> None:
    (chunk,) = chunks()
    exact = encode(chunk, EXACT)
    stored = encode(chunk, replace(EXACT, store_dtype=store_dtype))  # type: ignore[arg-type]
    expected = torch.from_numpy(exact.copy()).to(getattr(torch, store_dtype)).float().numpy()
    np.testing.assert_array_equal(stored.astype(np.float32), expected)


def test_other_weights_than_the_specs_are_refused() -> None:
    other = spec()
    other.vae["weights_sha256"] = "0" * 64
    with pytest.raises(ConfigError, match="it changed while the job ran"):
        Encoder("tiny", other)


class NanEncoder:
    def __call__(self, chunk: Chunk) -> Latent:
        raise NonfiniteLatentError("NaN")


class OneWay:
    """An encoder that kills its process on every chunk."""

    def __call__(self, chunk: Chunk) -> Latent:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")


class Allergic(OneWay):
    """An encoder that one clip kills."""

    def __call__(self, chunk: Chunk) -> Latent:
        return super().__call__(chunk) if chunk.facts.key == "k" else latent(0, 0)


class Buggy:
    """An encoder with a bug, which no retry mends."""

    def __call__(self, chunk: Chunk) -> Latent:
        raise RuntimeError("shape mismatch")


def test_a_nonfinite_latent_is_rejected_and_receipts_pass() -> None:
    (chunk,) = chunks()
    stage = EncodeStage(NanEncoder, Strikes(), HEALTHY)
    receipt = ClipsReceipt(shard="s", video=0, count=1)
    assert stage(receipt) is receipt
    rejected = stage(chunk)
    assert isinstance(rejected, RejectionReceipt)
    assert (rejected.rejection.reason, rejected.verdict) == ("nonfinite", False)


def test_bad_code_crashes_and_is_no_strike() -> None:
    (chunk,) = chunks()
    guard = Strikes()
    with pytest.raises(RuntimeError, match="shape mismatch"):
        EncodeStage(Buggy, guard, HEALTHY)(chunk)
    assert not guard.suspects("")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("No CUDA GPUs are available"),
        RuntimeError("failed to allocate pinned GPU Memory"),
        RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
        MemoryError(),
    ],
)
def test_where_the_device_fails_the_process_ends_and_the_clip_is_tried_again(error: Exception) -> None:
    """A CUDA context stays poisoned until its process ends."""
    (chunk,) = chunks()

    def fail() -> Latent:
        raise error

    assert kills(partial(or_die, fail, chunk))


def kills(step: Callable[[], object]) -> bool:
    """Whether the step ends its process by SIGKILL."""
    if (child := os.fork()) == 0:
        try:
            step()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_torch_itself_says_of_host_memory_what_we_look_for() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_of_the_device(found.value)


@pytest.mark.parametrize("latent", [EXACT, replace(EXACT, posterior="sample"), replace(EXACT, dtype="bfloat16")])
def test_chunks_that_overlap_give_the_same_bytes(latent: LatentRule) -> None:
    """Three threads, as on a GPU: each chunk computes as its own attempt, and the bytes are those of one thread."""
    make = partial(Encoder, "tiny", spec(latent=latent))
    cut = replace(latent, chunk_windows=1, context="0")
    some = [*chunks(latent), *chunks(cut, num_frames=25)]
    alone, stage = make(), EncodeStage(make, Strikes(), HEALTHY, threads=3)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(stage, some * 2))
    assert [each.payload for each in found] == [alone(chunk).payload for chunk in some] * 2  # type: ignore[union-attr]


def test_a_suspect_chunk_is_encoded_alone_and_only_its_own_death_rejects_it(tmp_path: Path) -> None:
    (chunk,) = chunks()
    guard = Strikes()
    for _ in range(MAX_STRIKES):
        guard.begin("s/0/0/0/encode")
    rejected = EncodeStage(Allergic, guard, HEALTHY)(chunk)
    assert isinstance(rejected, RejectionReceipt)
    assert (rejected.rejection.reason, rejected.verdict) == ("encode_crashed", True)
    healthy = partial(Encoder, "tiny", spec(latent=EXACT))
    latent = EncodeStage(healthy, guard, HEALTHY)(chunk)
    assert isinstance(latent, Latent)
    assert latent.payload == healthy()(chunk).payload


def test_a_card_that_dies_of_noise_rejects_nothing_and_its_strikes_are_forgotten() -> None:
    (chunk,) = chunks()
    guard = Strikes()
    guard.begin("s/0/0/0/decode")
    for _ in range(MAX_STRIKES):
        guard.begin("s/0/0/0/encode")
    stage = EncodeStage(OneWay, guard, HEALTHY)
    assert kills(partial(stage, chunk)), "by noise, after the child died of the chunk"
    seat = Seat(name=guard.me(), card=card_of("cpu"))
    with pytest.raises(ZeroDivisionError), control(guard, seat, "dies of noise"):
        raise ZeroDivisionError  # the proof ended: an exception is no death
    guard.begin(f"control {seat.name} {seat.card}/")  # what the dead process told the counter, which is elsewhere
    assert kills(partial(stage, chunk))
    guard.broken(seat, "dies of noise")  # so, too
    assert guard.begin("s/0/0/0/encode") == 0
    assert guard.begin("s/0/0/0/decode") == 1, "these are not by encoders"
    with pytest.raises(EncoderError, match=rf"{seat.card}: dies of noise"):
        EncodeStage(Allergic, guard, HEALTHY)


def only_in(process: int, make: Callable[[], Callable[[Chunk], Latent]]) -> Callable[[Chunk], Latent]:
    """An encoder that starts in one process; in any other, another encoder has the device's memory."""
    if os.getpid() != process:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 10.50 GiB")
    return make()


def test_a_healthy_suspect_whose_child_gets_no_memory_is_encoded() -> None:
    (chunk,) = chunks()
    guard, healthy = Strikes(), partial(Encoder, "tiny", spec(latent=EXACT))
    for _ in range(MAX_STRIKES):
        guard.begin("s/0/0/0/encode")
    latent = EncodeStage(partial(only_in, os.getpid(), healthy), guard, HEALTHY)(chunk)
    assert isinstance(latent, Latent)
    assert latent.payload == healthy()(chunk).payload


@pytest.mark.slow
def test_a_suspect_that_kills_and_whose_child_gets_no_memory_ends_as_a_verdict() -> None:
    (chunk,) = chunks()
    guard = Strikes()
    for _ in range(MAX_STRIKES):
        guard.begin("s/0/0/0/encode")
    stage = EncodeStage(partial(only_in, os.getpid(), Allergic), guard, HEALTHY)
    for _ in range(MAX_STRIKES):
        assert kills(partial(stage, chunk)), "it is tried here, and dies as before"
        guard.begin("s/0/0/0/encode")  # what the dead process told the counter, which is elsewhere
    rejected = stage(chunk)
    assert isinstance(rejected, RejectionReceipt)
    assert (rejected.rejection.reason, rejected.verdict) == ("encode_crashed", True)
    assert "killed 6 encoders" in rejected.rejection.message
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 10.50 GiB" in rejected.rejection.message


def test_only_an_encoder_on_a_gpu_works_on_several_chunks() -> None:
    pools = partial(Pools, readers=2, stagers=2, decode_cpus=1, decoders=(1, 2), encoders=(1, 1), encoder_cpus=1)
    on_cpu, on_gpu = pools(encoder_gpus=0), pools(encoder_gpus=0.5)
    assert on_cpu.encoder_threads == 1
    assert "max_concurrent_calls_per_actor" not in on_cpu.encoder_pool
    assert on_gpu.encoder_threads == THREADS
    assert on_gpu.encoder_pool["max_concurrent_calls_per_actor"] == THREADS


def test_a_pass_begins_with_all_encoders_on_gpus() -> None:
    """The first one may get a broken card, and Ray Data would start no other before it stands."""
    pools = partial(Pools, readers=2, stagers=2, decode_cpus=1, decoders=(1, 2), encoders=(1, 8), encoder_cpus=0)
    assert [pools(encoder_gpus=gpus).encoder_pool["initial_size"] for gpus in (0, 1)] == [1, 8]
