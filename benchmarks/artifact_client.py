"""A process that uploads one file once, or several again and again; prints what it did as JSON.

    python -m benchmarks.artifact_client aioboto3|gateway|direct FILE
        once, timed, as soon as its input closes
    python -m benchmarks.artifact_client busy-gateway|busy-s3 FILE…
        again and again, each in a thread, until its input closes

Addresses and credentials come in the environment (see `artifacts.py`). All
ways read the same file, cut it into the same parts and send as many at a time.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import aioboto3
import grpc
from aiobotocore.config import AioConfig
from headrace import artifact_rules as rules
from headrace.transfers import Direct, Transfers
from headrace.v1 import run_service_pb2 as runs
from headrace.v1.run_service_pb2_grpc import RunServiceStub

PARALLEL: Final = 4


def renew(path: Path) -> None:
    """Change every part of a file a little, so that nobody has it already."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for number in range(1, rules.part_count(size) + 1):
            file.seek(rules.part_range(size, number)[0])
            file.write(random.randbytes(16))


@contextlib.asynccontextmanager
async def s3_client() -> AsyncIterator[Any]:
    """Make a client of aioboto3 with its defaults, and let it connect."""
    async with aioboto3.Session().client(
        "s3",
        endpoint_url=os.environ["HEADRACE_GATEWAY_S3_ENDPOINT_URL"],
        aws_access_key_id=os.environ["HEADRACE_GATEWAY_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["HEADRACE_GATEWAY_S3_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=AioConfig(signature_version="s3v4", s3={"addressing_style": "path"}),
    ) as s3:
        await s3.head_bucket(Bucket=os.environ["HEADRACE_GATEWAY_S3_BUCKET"])
        yield s3


async def upload_by_aioboto3(s3: Any, path: Path, size: int, *, parallel: int = PARALLEL) -> None:
    """Upload as anybody would without a gateway: parts in parallel."""
    bucket, key = os.environ["HEADRACE_GATEWAY_S3_BUCKET"], f"plain/{uuid.uuid4().hex}"
    answer = await s3.create_multipart_upload(Bucket=bucket, Key=key)
    upload_id = answer["UploadId"]
    turn = asyncio.Semaphore(parallel)

    def read(number: int) -> bytes:
        offset, length = rules.part_range(size, number)
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    async def put(number: int) -> dict[str, Any]:
        async with turn:
            body = await asyncio.to_thread(read, number)
            part = await s3.upload_part(
                Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=body
            )
        return {"PartNumber": number, "ETag": part["ETag"]}

    parts = await asyncio.gather(*map(put, range(1, rules.part_count(size) + 1)))
    await s3.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
    )


def _channel() -> grpc.Channel:
    # A connection of its own, as the processes of jobs have.
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(os.environ["BENCHMARK_ADDRESS"], options=options)


def create_run(channel: grpc.Channel) -> str:
    """Create a run for artifacts and return its id."""
    run_id = uuid.uuid4().hex
    RunServiceStub(channel).CreateRun(runs.CreateRunRequest(run_id=run_id))
    return run_id


def upload_once(mode: str, path: Path) -> dict[str, float]:
    """Upload a file once over an open connection; return its bytes and the seconds it took.

    The clock stops when the file is visible.
    """
    if mode == "aioboto3":
        return asyncio.run(_upload_once_by_aioboto3(path, path.stat().st_size))
    direct: Direct = "always" if mode == "direct" else "never"
    with (
        _channel() as channel,
        Transfers(channel, direct=direct, parallel=PARALLEL) as transfers,
    ):
        run_id = create_run(channel)
        started = time.perf_counter()
        transfers.upload(run_id, path, "file")
        return {"bytes": path.stat().st_size, "seconds": time.perf_counter() - started}


async def _upload_once_by_aioboto3(path: Path, size: int) -> dict[str, float]:
    async with s3_client() as s3:
        started = time.perf_counter()
        await upload_by_aioboto3(s3, path, size)
        return {"bytes": size, "seconds": time.perf_counter() - started}


def stay_busy(mode: str, paths: list[Path]) -> dict[str, float]:
    """Upload every file again and again, each in a thread, until standard input closes."""
    over = threading.Event()
    sent = [0] * len(paths)

    def files(index: int) -> Iterator[tuple[Path, int]]:
        path = paths[index]
        size = path.stat().st_size
        while not over.is_set():
            renew(path)
            yield path, size
            sent[index] += size

    async def past_the_gateway(index: int) -> None:
        async with s3_client() as s3:
            for path, size in files(index):
                await upload_by_aioboto3(s3, path, size, parallel=1)

    def through_the_gateway(index: int) -> None:
        with (
            _channel() as channel,
            Transfers(channel, direct="never", parallel=1) as transfers,
        ):
            run_id = create_run(channel)
            for path, _ in files(index):
                transfers.upload(run_id, path, f"file-{index}")

    def work(index: int) -> None:
        if mode == "busy-s3":
            asyncio.run(past_the_gateway(index))
        else:
            through_the_gateway(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(paths))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    seconds = time.perf_counter() - started
    moved = sum(sent)
    for thread in threads:
        thread.join()
    return {"bytes": moved, "seconds": seconds}


def main() -> None:
    """Do what the arguments say and print the result."""
    mode, *files = sys.argv[1:]
    paths = [Path(file) for file in files]
    if mode.startswith("busy-"):
        result = stay_busy(mode, paths)
    else:
        sys.stdin.read()
        result = upload_once(mode, paths[0])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
