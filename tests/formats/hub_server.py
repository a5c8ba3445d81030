"""A hub on the loopback: the part of its protocol that models need, read and pushed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Models by name and branch; it has state because it keeps what is pushed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.history: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens: set[str] = set()

    @property
    def endpoint(self) -> str:
        """Its address, as HF_ENDPOINT has it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, files: dict[str, bytes]) -> str:
        """The name of a version with these files."""
        parts = (f"{k}\0{hashlib.sha1(v).hexdigest()}\n" for k, v in sorted(files.items()))
        return hashlib.sha1("".join(parts).encode()).hexdigest()

    def version(self, model: str, revision: str) -> dict[str, bytes] | None:
        """The files of a branch or a commit."""
        branches = self.models.get(model, {})
        for files in branches.values():
            self.history[self.commit(files)] = dict(files)
        return branches.get(revision, self.history.get(revision) if branches else None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""

    def _answer(self, code: int, body: bytes | Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _asked(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if "/org/" in path:
            self.server.tokens.add(self.headers.get("Authorization", ""))
        return path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while n := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(n))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._asked()
        if path == "/api/whoami-v2":
            known = bool(self.headers.get("Authorization"))
            return self._answer(200 if known else 401, {"name": "org", "type": "user"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+))?", path):
            return self._info(found[1], found[3] or "main")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
            files = self.server.version(found[1], found[2]) or {}
            listed = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for name, data in files.items()
            ]
            return self._answer(200, listed)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3])
        return self._answer(404, {"error": "not found"})

    def _info(self, model: str, revision: str) -> None:
        files = self.server.version(model, revision)
        if files is None:
            return self._answer(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]
        return self._answer(
            200, {"id": model, "sha": self.server.commit(files), "siblings": siblings}
        )

    def _file(self, model: str, revision: str, name: str) -> None:
        files = self.server.version(model, revision)
        if files is None or name not in files:
            return self._answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
        data = files[name]
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X_Repo_Commit": self.server.commit(files),
            "Accept_Ranges": "bytes",
        }
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span is None:
            return self._answer(200, data, **headers)
        start, stop = int(span[1]), min(int(span[2]) + 1, len(data))
        headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._answer(206, data[start:stop], **headers)

    def do_PUT(self) -> None:
        path = self._asked()
        data = self._body()
        self.server.large[path.rpartition("/")[2]] = data
        self._answer(200)

    def do_POST(self) -> None:
        path, body = self._asked(), self._body()
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else (
                asked["name"])  # fmt: skip
            if name in self.server.models:
                url = f"{self.server.endpoint}/{name}"
                return self._answer(409, {"error": "You already created it", "url": url})
            self.server.models[name] = {"main": {}}
            self.server.private[name] = asked.get("visibility") == "private" or bool(
                asked.get("private")
            )
            return self._answer(200, {"url": f"{self.server.endpoint}/{name}"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = self.server.models[found[1]]
            branches.setdefault(found[2], dict(branches["main"]))
            return self._answer(200, {})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self._commit(found[1], found[2], body)
        return self._answer(404, {"error": f"not found: {path}"})

    def _batch(self, asked: Any) -> None:
        objects = [
            {
                **one,
                "actions": {
                    "upload": {"href": f"{self.server.endpoint}/lfs/{one['oid']}", "header": {}}
                },
            }
            for one in asked["objects"]
        ]
        self._answer(
            200,
            {"transfer": "basic", "objects": objects},
            Content_Type="application/vnd.git-lfs+json",
        )

    def _commit(self, model: str, branch: str, body: bytes) -> None:
        if branch not in self.server.models.get(model, {}):
            return self._answer(404, {"error": "no such branch"}, X_Error_Code="RevisionNotFound")
        files = dict(self.server.models[model][branch])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        self.server.models[model][branch] = files
        commit = self.server.commit(files)
        return self._answer(
            200,
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.server.endpoint}/{model}/commit/{commit}",
            },
        )


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub without models, in threads of this process."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
