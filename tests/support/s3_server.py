"""An S3 server on loopback (moto's): run as a script with SECONDS, it prints its address and serves
until its input ends; every request takes SECONDS longer, as over a network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET = "designs"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTING",
    "AWS_SECRET_ACCESS_KEY": "a-secret-nobody-may-see",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """One server; ``environment`` is what a client needs to reach it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.endpoint = process.stdout.readline().strip()
        self.environment = CREDENTIALS | {"AWS_ENDPOINT_URL": self.endpoint}

    def upload(self, folder: Path, prefix: str) -> str:
        """Every file of a folder; returns the URI of the prefix."""
        from pyarrow import fs

        os.environ.update(self.environment)
        system = fs.S3FileSystem(
            endpoint_override=self.endpoint, allow_bucket_creation=True, scheme="http"
        )
        system.create_dir(BUCKET)
        for path in folder.rglob("*"):
            if path.is_file():
                with system.open_output_stream(
                    f"{BUCKET}/{prefix}/{path.relative_to(folder)}"
                ) as out:
                    out.write(path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"


@contextmanager
def s3_server(delay_s: float = 0.0) -> Iterator[S3Server]:
    """A server for as long as the context."""
    before = dict(os.environ)
    process = subprocess.Popen(
        [sys.executable, __file__, str(delay_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield S3Server(process)
        finally:
            process.kill()
            os.environ.clear()
            os.environ.update(before)


def main() -> None:
    """Serve until the input ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    delay_s = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    answer = DomainDispatcherApplication(create_backend_app)

    def application(environ: Any, start_response: Any) -> Any:
        time.sleep(delay_s)
        return answer(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
