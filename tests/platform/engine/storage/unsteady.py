"""An object store of a few lines that fails when told to: it holds one bucket and answers what a reader asks for."""

import http.server
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UnsteadyStore:
    """The objects by their names, and the failures.

    failures: number of reads of an object's content that are answered by 503 before they succeed; each takes one away.
    reads: number of reads so far, with those that failed.
    """

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects, self.failures, self.reads, self.endpoint = dict(objects), 0, 0, ""


@contextmanager
def unsteady_store(objects: Mapping[str, bytes]) -> Iterator[UnsteadyStore]:
    """Context manager: a running store whose bucket is called "bucket"."""
    store = UnsteadyStore(objects)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: bytes = b"", size: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if size is None else size))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            _, _, name = self.path.lstrip("/").partition("/")
            known = store.objects.get(name)
            self._answer(200 if known is not None or not name else 404, size=len(known or b""))

        def do_GET(self) -> None:
            _, _, name = self.path.lstrip("/").partition("/")
            if name not in store.objects:
                self._answer(404)
                return
            store.reads += 1
            if store.failures:
                store.failures -= 1
                self._answer(503)
                return
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
            body = store.objects[name][int(first) : int(last) + 1]
            self._answer(206 if body else 416, body)

        def log_message(self, *arguments) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield store
        server.shutdown()
        thread.join()
