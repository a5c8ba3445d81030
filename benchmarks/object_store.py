"""An object store on the loopback, for tests and benchmarks: the part of S3 that clients use.

    python -m benchmarks.object_store FOLDER --fail 0.05 --seed 0

serves one bucket of any name, without looking at signatures, and streams ranges from the disk with
`sendfile`. It can fail on purpose: a share of the requests is answered with 503, cut in the middle
of a body, or cut before the answer. `moto` copies a whole object for every range of it, which is
useless for rates; this one is for rates and faults, and moto for what S3 answers.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """One object: its bytes lie in files of their own, one for each part of its upload."""

    files: tuple[Path, ...]
    etag: str
    time: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return sum(file.stat().st_size for file in self.files)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Path, int, int]]:
        """(file, offset, length) of the bytes from `start` to `stop`."""
        begin = 0
        for file in self.files:
            size = file.stat().st_size
            first, last = max(start - begin, 0), min(stop - begin, size)
            if first < last:
                yield file, first, last - first
            begin += size


@dataclass
class Upload:
    """A multipart upload that is not complete."""

    key: str
    parts: dict[int, tuple[Path, str]] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """The store; it has state because it stores.

    Attributes:
        objects: what is visible, by bucket and key: `bucket/folder/name`.
        uploads: multipart uploads that are not complete, by their id.
        requests: what was asked: method and path with its query.
        keys: identifiers of the keys that signed; empty for what nobody signed.
        fail: share of requests that are made to fail.
        rate: bytes per second of all connections together, at most; 0 for no limit.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, folder: Path, *, port: int = 0, fail: float = 0.0, seed: int = 0, rate: float = 0.0
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder = folder
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.requests: list[str] = []
        self.keys: set[str] = set()
        self.fail = fail
        self.rate = rate
        self.failed = 0
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._free = 0.0  # when the line is free again

    @property
    def endpoint(self) -> str:
        """Its address, as AWS_ENDPOINT_URL wants it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """What leads a client here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_REGION": "us-east-1",
        }

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that are killed close their connections."""

    def new_file(self) -> Path:
        """Where the bytes of a part go."""
        with self._lock:
            return self.folder / f"part-{next(self._numbers)}"

    def put_file(self, key: str, path: Path) -> None:
        """Make `path` an object; its bytes are not copied, and must not change."""
        # The same for stores that serve the same file, as for the regions of one bucket.
        etag = hashlib.md5(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()
        self.objects[key] = Stored((path,), etag)

    def put_folder(self, key: str, path: Path) -> None:
        """Make every file below `path` an object."""
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            self.put_file(f"{key}/{file.relative_to(path).as_posix()}", file)

    def forget(self, gone: Stored | None) -> None:
        """Remove the bytes of an object that is replaced or deleted, where they are the store's."""
        for file in () if gone is None else gone.files:
            if file.parent == self.folder:
                file.unlink(missing_ok=True)

    def put(self, key: str, found: Stored) -> None:
        """Make `found` the object `key`."""
        older = self.objects.get(key)
        self.objects[key] = found
        self.forget(older)

    def read(self, key: str) -> bytes:
        """The bytes of an object."""
        return b"".join(file.read_bytes() for file in self.objects[key].files)

    def pace(self, n_bytes: int) -> None:
        """Wait until `n_bytes` have gone over a line of `rate` bytes per second."""
        if self.rate:
            with self._lock:
                self._free = max(self._free, time.monotonic()) + n_bytes / self.rate
                wait = self._free - time.monotonic()
            time.sleep(max(wait, 0))

    def fault(self) -> str:
        """What goes wrong with the next request; empty for nothing."""
        with self._lock:
            if self._random.random() >= self.fail:
                return ""
            self.failed += 1
            return self._random.choice(["busy", "cut", "silent"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""

    def _begin(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {self.path}")
        signed = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        self.server.keys.add(signed[1] if signed else "")
        query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        self._fault = self.server.fault()
        return unquote(url.path).strip("/"), query

    def _answer(self, code: int, body: str = "", **headers: object) -> None:
        if self._fault == "silent":
            self.close_connection = True
            return
        data = body.encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if code != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, code: int, name: str) -> None:
        self._answer(code, f"<Error><Code>{name}</Code><Message>{name}</Message></Error>")

    def _body(self, file: Path | None) -> tuple[bytes, str] | None:
        """The body, written to `file` if there is one, and its MD5; None where it was cut."""
        left = int(self.headers.get("Content-Length", 0))
        if self._fault == "cut":
            self.rfile.read(left // 2)
            self.close_connection = True
            return None
        kept, digest = bytearray(), hashlib.md5()
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(file.open("wb", buffering=0)) if file is not None else None
            while left:
                block = self.rfile.read(min(left, _BLOCK))
                if not block:
                    self.close_connection = True
                    return None
                digest.update(block[:64])  # tells objects apart; not the MD5 that S3 has
                if out is not None:
                    out.write(block)
                else:
                    kept += block
                left -= len(block)
                self.server.pace(len(block))
        if self._fault == "busy":
            self._error(503, "SlowDown")
            return None
        return bytes(kept), digest.hexdigest()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        key, query = self._begin()
        if self._fault == "busy":
            return self._error(503, "SlowDown")
        if "uploads" in query:
            return self._uploads(query.get("prefix", ""))
        if "/" not in key or "list-type" in query:
            return self._list(key, query.get("prefix", ""), query.get("delimiter", ""))
        found = self.server.objects.get(key)
        if found is None:
            return self._error(404, "NoSuchKey")
        wanted = self.headers.get("If-Match")
        if wanted is not None and wanted.strip('"') != found.etag:
            return self._error(412, "PreconditionFailed")
        self._send(found)
        return None

    def _send(self, found: Stored) -> None:
        size, start = found.size, 0
        stop = size
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match:
            start = int(match[1])
            stop = min(int(match[2]) + 1, size) if match[2] else size
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{found.etag}"')
        self.send_header("Last-Modified", formatdate(found.time, usegmt=True))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self._fault:
            stop, self.close_connection = start + (stop - start) // 2, True
        self.wfile.flush()
        step = _BLOCK if self.server.rate else stop - start
        for file, offset, length in found.pieces(start, stop):
            with file.open("rb") as opened:
                for at in range(0, length, max(step, 1)):
                    n = min(step, length - at)
                    self.connection.sendfile(opened, offset + at, n)
                    self.server.pace(n)

    def _list(self, bucket: str, prefix: str, delimiter: str) -> None:
        lines, folders = [], set()
        for full, found in sorted(self.server.objects.items()):
            key = full.removeprefix(f"{bucket}/")
            if not full.startswith(f"{bucket}/{prefix}"):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.time))
            lines.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified>"
                f"<ETag>{found.etag}</ETag><Size>{found.size}</Size></Contents>"
            )
        lines += [
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            for folder in sorted(folders)
        ]
        self._answer(
            200,
            f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>"
            f"<KeyCount>{len(lines)}</KeyCount>{''.join(lines)}</ListBucketResult>",
            Content_Type="application/xml",
        )

    def _uploads(self, prefix: str) -> None:
        lines = [
            f"<Upload><Key>{escape(one.key.partition('/')[2])}</Key><UploadId>{name}</UploadId></Upload>"
            for name, one in self.server.uploads.items()
            if one.key.partition("/")[2].startswith(prefix)
        ]
        self._answer(
            200, f"<ListMultipartUploadsResult>{''.join(lines)}</ListMultipartUploadsResult>"
        )

    def do_PUT(self) -> None:
        key, query = self._begin()
        file = self.server.new_file()
        body = self._body(file)
        if body is None:
            return None
        if "uploadId" in query:
            upload = self.server.uploads.get(query["uploadId"])
            if upload is None:
                return self._error(404, "NoSuchUpload")
            upload.parts[int(query["partNumber"])] = (file, body[1])
            return self._answer(200, ETag=f'"{body[1]}"')
        if self.headers.get("If-None-Match") == "*" and key in self.server.objects:
            return self._error(412, "PreconditionFailed")
        etag = hashlib.md5(f"{file} {body[1]}".encode()).hexdigest()
        self.server.put(key, Stored((file,), etag))
        return self._answer(200, ETag=f'"{etag}"')

    def do_POST(self) -> None:
        key, query = self._begin()
        body = self._body(None)
        if body is None:
            return None
        if "uploads" in query:
            name = f"upload-{self.server.new_file().name}"
            self.server.uploads[name] = Upload(key)
            return self._answer(
                200,
                f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId>"
                "</InitiateMultipartUploadResult>",
            )
        if "uploadId" in query:
            return self._complete(key, query["uploadId"])
        if "delete" in query:
            keys = [found.decode() for found in re.findall(rb"<Key>(.*?)</Key>", body[0])]
            for one in keys:
                self.server.forget(self.server.objects.pop(f"{key}/{unescape(one)}", None))
            done = "".join(f"<Deleted><Key>{one}</Key></Deleted>" for one in keys)
            return self._answer(200, f"<DeleteResult>{done}</DeleteResult>")
        return self._error(400, "InvalidRequest")

    def _complete(self, key: str, name: str) -> None:
        upload = self.server.uploads.pop(name, None)
        if upload is None:
            # Done before, and the answer was lost: S3 says the same again for a while.
            done = self.server.objects.get(key)
            if done is None:
                return self._error(404, "NoSuchUpload")
        else:
            parts = [upload.parts[number] for number in sorted(upload.parts)]
            etag = hashlib.md5("".join(tag for _, tag in parts).encode()).hexdigest()
            done = Stored(tuple(file for file, _ in parts), f"{etag}-{len(parts)}")
            self.server.put(key, done)
        self._answer(
            200,
            f"<CompleteMultipartUploadResult><ETag>&quot;{done.etag}&quot;</ETag>"
            "</CompleteMultipartUploadResult>",
        )
        return None

    def do_DELETE(self) -> None:
        key, query = self._begin()
        if self._fault == "busy":
            return self._error(503, "SlowDown")
        if "uploadId" in query:
            gone = self.server.uploads.pop(query["uploadId"], None)
            files = tuple(file for file, _ in gone.parts.values()) if gone is not None else ()
            self.server.forget(Stored(files, ""))
        else:
            self.server.forget(self.server.objects.pop(key, None))
        return self._answer(204)


@contextlib.contextmanager
def serving(
    folder: Path, *, fail: float = 0.0, seed: int = 0, rate: float = 0.0
) -> Iterator[Server]:
    """A store that keeps its bytes in `folder`, in threads of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    with Server(folder, fail=fail, seed=seed, rate=rate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    """Serve until the standard input ends; the address is the first line of the output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fail", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--put", action="append", default=[], metavar="KEY=FOLDER")
    given = parser.parse_args()
    with serving(given.folder, fail=given.fail, seed=given.seed, rate=given.rate) as server:
        for one in given.put:
            key, _, path = one.partition("=")
            server.put_folder(key, Path(path))
        print(server.endpoint, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            os.read(0, 1)


if __name__ == "__main__":
    main()
