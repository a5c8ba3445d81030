"""What Google's XML interface answers and gcp-storage-emulator lacks, in front of that emulator.

The emulator keeps the objects, and answers for their bytes and ranges. Added here: ETags, `HEAD`,
`If-Match`, lists in XML, and uploads in parts, which are put whole when they are completed.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import threading
from datetime import datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape


class Proxy(ThreadingHTTPServer):
    """It has state: (bytes, ETag) of each part, by upload and number, until it is complete."""

    daemon_threads = True

    def __init__(self, emulator: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.emulator = emulator
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.uploads: dict[str, dict[int, tuple[bytes, str]]] = {}
        self.lock = threading.Lock()  # the emulator answers one at a time, and so does this
        self.n_uploads = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""

    def _any(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = (unquote(part) for part in url.path.lstrip("/").partition("/"))
        self.data = f"/{bucket}/{quote(key, safe='')}"
        self.facts = f"/storage/v1/b/{bucket}/o"
        self.query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            if not key:
                return self._list()
            self.facts += f"/{quote(key, safe='')}"
            if "uploads" in self.query or "uploadId" in self.query:
                return self._upload(self.query.get("uploadId", ""))
            return {"PUT": self._put, "DELETE": self._delete}.get(self.command, self._get)()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def _ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        connection = http.client.HTTPConnection(self.server.emulator, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, code: int, kind: str, body: str) -> None:
        self._answer(code, f"<{kind}>{body}</{kind}>".encode())

    def _error(self, code: int, name: str) -> None:
        self._xml(code, "Error", f"<Code>{name}</Code><Message>{name}</Message>")

    def _known(self) -> dict[str, Any] | None:
        status, _, body = self._ask("GET", self.facts)
        return json.loads(body) if status == 200 else None

    def _get(self) -> None:
        if (found := self._known()) is None:
            return self._error(404, "NoSuchKey")
        etag = f'"{found["etag"]}"'
        if self.headers.get("If-Match", etag) != etag:
            return self._error(412, "PreconditionFailed")
        time = datetime.fromisoformat(found["updated"])
        headers = {"ETag": etag, "Last-Modified": format_datetime(time, usegmt=True)}
        if self.command == "HEAD":
            return self._answer(200, **headers, **{"Content-Length": str(found["size"])})
        wanted = {"Range": self.headers["Range"]} if "Range" in self.headers else {}
        status, said, body = self._ask("GET", self.data, **wanted)
        headers |= {k: v for k, v in said.items() if k == "Content-Range"}
        return self._answer(status, body, **headers)

    def _list(self) -> None:
        prefix = quote(self.query.get("prefix", ""), safe="")
        status, _, body = self._ask("GET", f"{self.facts}?prefix={prefix}")
        if status != 200:
            return self._error(404, "NoSuchBucket")
        lines = [
            f"<Contents><Key>{escape(one['name'])}</Key><Size>{one['size']}</Size>"
            f"<LastModified>{datetime.fromisoformat(one['updated']).isoformat()}</LastModified>"
            f'<ETag>"{one["etag"]}"</ETag></Contents>'
            for one in json.loads(body)["items"]
        ]
        return self._xml(200, "ListBucketResult", "".join(lines))

    def _delete(self) -> None:
        there = self._ask("DELETE", self.facts)[0] == 200
        return self._answer(204) if there else self._error(404, "NoSuchKey")

    def _put(self) -> None:
        status, _, _ = self._ask("PUT", self.data, self.body)
        if status != 200 or (found := self._known()) is None:
            return self._error(404, "NoSuchBucket")
        if self.command == "PUT":
            return self._answer(200, ETag=f'"{found["etag"]}"')
        return self._xml(200, "CompleteMultipartUploadResult", f'<ETag>"{found["etag"]}"</ETag>')

    def _upload(self, name: str) -> None:
        uploads = self.server.uploads
        if not name:
            self.server.n_uploads += 1
            uploads[f"u{self.server.n_uploads}"] = {}
            body = f"<UploadId>u{self.server.n_uploads}</UploadId>"
            return self._xml(200, "InitiateMultipartUploadResult", body)
        if name not in uploads:
            return self._error(404, "NoSuchUpload")
        if self.command == "PUT":
            etag = f'"{hashlib.md5(self.body).hexdigest()}"'
            uploads[name][int(self.query["partNumber"])] = self.body, etag
            return self._answer(200, ETag=etag)
        parts = sorted(uploads.pop(name).items())
        if self.command == "DELETE":
            return self._answer(204)
        asked = r"<ETag>(.*?)</ETag><PartNumber>(\d+)</PartNumber>"
        listed = re.findall(asked, self.body.decode())
        if listed != [(etag, str(number)) for number, (_, etag) in parts]:
            return self._error(400, "InvalidPart")
        self.body = b"".join(data for _, (data, _) in parts)
        return self._put()
