"""An S3 server on this machine, for benchmarks that read from object storage."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET = "benchmark"


@contextmanager
def s3_server() -> Iterator[str]:
    """Context manager: URL of a moto server in its own process, with an empty bucket. Its credentials are in the environment."""
    program = (
        "from moto.moto_server.threaded_moto_server import ThreadedMotoServer as S\nimport time\n"
        "s = S(ip_address='127.0.0.1', port=0, verbose=False); s.start(); print(s.get_host_and_port()[1], flush=True)\n"
        "time.sleep(10**6)"
    )
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
        client_of(endpoint).create_bucket(Bucket=BUCKET)
        yield endpoint
    finally:
        process.terminate()
        process.wait()


def client_of(endpoint: str) -> Any:
    """A client of the server."""
    import boto3

    return boto3.client("s3", endpoint_url=endpoint)


def upload(folder: Path, endpoint: str) -> None:
    """Copy the files of a folder into the bucket, below the name of the folder."""
    for file in folder.iterdir():
        client_of(endpoint).upload_file(str(file), BUCKET, f"{folder.name}/{file.name}")
