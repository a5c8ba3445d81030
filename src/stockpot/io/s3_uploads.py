"""Multipart uploads that nobody will complete: S3 keeps their parts, unseen and paid for.

obstore starts, completes and aborts uploads, and cannot list them; this does, by two requests that
are signed here. Google and Azure forget such parts by themselves, after a week.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from collections.abc import Iterator, Mapping
from html import unescape
from urllib.parse import quote, urlsplit

_EMPTY = hashlib.sha256(b"").hexdigest()
_MAX_UPLOADS = 1000


def abort_uploads(root: str, key: str, *, folder: bool) -> None:
    """Abort the unfinished uploads of the output `key` in the bucket with the name `root`.

    What another run is uploading to the same place at this moment is aborted as well: that run
    fails, and says so. Nothing is done where it cannot be: without keys in the environment (then a
    lifecycle rule of the bucket is the way), or where the store knows no such requests.
    """
    if not root.startswith("s3://") or not os.environ.get("AWS_ACCESS_KEY_ID"):
        return
    bucket = root.removeprefix("s3://").strip("/")
    prefix = f"{key}/" if folder else key
    try:
        listed = _ask("GET", bucket, "", {"prefix": prefix, "uploads": ""})
        for of, upload in _listed(listed.decode("utf-8", "replace")):
            if folder or of == key:
                _ask("DELETE", bucket, of, {"uploadId": upload})
    except (OSError, ValueError):
        return


def _listed(text: str) -> Iterator[tuple[str, str]]:
    """Key and id of each upload in an answer; stores differ in the order of the two.

    >>> list(_listed("<Upload><UploadId>1</UploadId><Key>a&amp;b</Key></Upload>"))
    [('a&b', '1')]
    """
    for one in re.findall(r"<Upload>(.*?)</Upload>", text, re.DOTALL)[:_MAX_UPLOADS]:
        key, upload = (re.search(rf"<{tag}>([^<]*)</{tag}>", one) for tag in ("Key", "UploadId"))
        if key is not None and upload is not None:
            yield unescape(key[1]), unescape(upload[1])


def _ask(method: str, bucket: str, key: str, query: Mapping[str, str]) -> bytes:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    base = endpoint or f"https://s3.{region}.amazonaws.com"
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{base} is no endpoint")
    path = quote(f"{parts.path.rstrip('/')}/{bucket}/{key}".rstrip("/"))
    text = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(query.items()))
    headers = _signed(method, parts.netloc, path, text, region)
    url = f"{parts.scheme}://{parts.netloc}{path}?{text}"
    from urllib.request import Request, urlopen  # half of what importing this package would take

    request = Request(url, method=method, headers=headers)
    with urlopen(request, timeout=30) as answer:
        found: bytes = answer.read(1 << 24)
    return found


def _signed(method: str, host: str, path: str, query: str, region: str) -> dict[str, str]:
    """Headers with a signature of version 4, of a request without a body.

    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {"host": host, "x-amz-content-sha256": _EMPTY, "x-amz-date": now}
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    asked = "\n".join([method, path, query, lines, names, _EMPTY])
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(asked.encode()).hexdigest()])
    key = ("AWS4" + os.environ.get("AWS_SECRET_ACCESS_KEY", "")).encode()
    for part in (now[:8], region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    credential = f"{os.environ['AWS_ACCESS_KEY_ID']}/{scope}"
    return {name: value for name, value in headers.items() if name != "host"} | {
        "Authorization": f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, "
        f"Signature={signature}"
    }
