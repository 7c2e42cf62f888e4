"""The input of `bench reader`: an output of random latents of a real size, and a small S3 server."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

import vae
from pipeline.output import layout, shard_file
from pipeline.output.commit import seal
from pipeline.output.derived import derive
from pipeline.output.spec_file import write_spec
from pipeline.records import ChunkId, ClipFacts, CompleteShard, Latent, clip_id
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule, Spec
from pipeline.storage import Storage

SHAPE = (16, 13, 60, 90)
"""49 frames of 480x720."""

FILES = 3


def write_latents(where: Path, clips: int) -> None:
    """Write an output of `clips` rows of noise in FILES data files."""
    output = Storage(str(where))
    spec = Spec(vae=vae.load_vae("tiny").info.to_json(), clip=ClipRule(), latent=LatentRule())
    write_spec(output, spec)
    names = [f"{i:06d}-{i:012x}" for i in range(FILES)]
    for name in names:
        count = clips // FILES
        complete = CompleteShard(name=name, planned=count, latents={(i, 0): 1 for i in range(count)}, rejections={})
        sink = io.BytesIO()
        shard_file.write(sink, spec.to_json(), complete, map(shard_file.parquet_row, _latents(name, count)))
        output.put(layout.data_path(name), sink.getvalue())
        derive(output, name)
    seal(output, names)


def _latents(shard: str, count: int) -> Iterator[Latent]:
    rng = np.random.default_rng(int(shard[:6]))
    for i in range(count):
        noise = rng.standard_normal(SHAPE, np.float32).view(np.uint32) >> 16  # the bits of bfloat16
        facts = ClipFacts(
            id=clip_id(shard, i, 0),
            key=f"{shard}/{i}",
            caption=f"clip {i} of {shard}, and what a captioner would say about it at some length",
            uri=f"s3://videos/{shard}.tar#{i}.mp4",
            start="0",
            end="49/8",
            fps="8",
            num_frames=49,
            height=480,
            width=720,
            timestamps=tuple(frame / 8 for frame in range(49)),
            num_repaired=0,
            source={},
            extra={},
        )
        yield Latent(
            id=ChunkId(shard=shard, video=i, clip=0),
            payload=noise.astype("<u2").tobytes(),
            shape=SHAPE,
            dtype="bfloat16",
            facts=facts,
        )


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[int]:
    """Serve the files of a folder as a bucket, in a separate process. Yield the port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(str(folder), theirs), daemon=True)
    server.start()
    try:
        yield ours.recv()
    finally:
        server.kill()
        server.join()


def _serve(folder: str, ready: Connection) -> None:
    """Answer ListObjectsV2, HEAD and GET with a range, by sendfile, without authentication."""
    import asyncio

    from aiohttp import web

    root = Path(folder)

    async def answer(request: web.Request) -> web.StreamResponse:
        bucket, _, key = request.path.lstrip("/").partition("/")
        if "list-type" in request.query:
            prefix = request.query.get("prefix", "")
            paths = sorted(path for path in root.rglob("*") if path.is_file())
            keys = [(str(path.relative_to(root)), path.stat().st_size) for path in paths]
            items = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size><ETag>{size}</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for name, size in keys
                if name.startswith(prefix)
            )
            text = f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
            return web.Response(text=text, content_type="application/xml")
        path = root / key
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())
