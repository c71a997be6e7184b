"""A Hub in a thread: repositories as dictionaries in, Hugging Face's HTTP protocol out, and a log of what was asked.

It speaks what `huggingface_hub` uses for reading: `/api/models/…/revision/…`, `…/tree/…`, and HEAD and GET on
`/…/resolve/<revision>/<file>` with `ETag`, `X-Repo-Commit`, `X-Linked-Size`, ranges, and the errors' `X-Error-Code`.
"""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping


class Hub:
    """Repositories by name: revision → {file: bytes}. `gated` names refuse; `cuts` break a file's next downloads."""

    def __init__(self, repos: Mapping[str, Mapping[str, Mapping[str, bytes]]]):
        self.repos = {name: dict(revisions) for name, revisions in repos.items()}
        self.gated: set[str] = set()
        self.cuts: dict[str, list[int]] = {}  # file → after how many bytes each of its next answers stops
        self.failing = False  # every answer is 503
        self.missing: set[str] = set()  # files that are listed, and not there
        self.damaged: set[str] = set()  # files of which another byte arrives
        self.log: list[tuple[str, str, str | None]] = []  # (method, path, range)
        self.url = ""

    def commit(self, repo: str, revision: str) -> str:
        return hashlib.sha1(f"{repo}@{self._branch(repo, revision)}".encode()).hexdigest()

    def find(self, repo: str, revision: str) -> Mapping[str, bytes] | None:
        branch = self._branch(repo, revision)
        return None if branch is None else self.repos[repo][branch]

    def downloads(self) -> list[str]:
        return [path.rsplit("/", 1)[1] for method, path, _ in self.log if method == "GET" and "/resolve/" in path]

    def _branch(self, repo: str, revision: str) -> str | None:
        for branch in self.repos[repo]:
            if revision in (branch, hashlib.sha1(f"{repo}@{branch}".encode()).hexdigest()):
                return branch
        return None


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Runs the hub on a free port while the block runs; `hub.url` is its endpoint."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body: bool):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        if self.hub.failing:
            return self._send(503, {}, b"down")
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+)/?)?", path)
        file = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
        if api:
            return self._api(api[1], api[2], api[3] or "main")
        if file:
            return self._file(*file.groups(), body=body)
        return self._send(404, {}, b"")

    def _refused(self, repo: str, revision: str) -> bool:
        if repo not in self.hub.repos:
            self._send(401, {"X-Error-Code": "RepoNotFound"}, b"{}")  # the real one says 401 to strangers too
        elif repo in self.hub.gated:
            self._send(403, {"X-Error-Code": "GatedRepo"}, b"{}")
        elif self.hub.find(repo, revision) is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        else:
            return False
        return True

    def _api(self, repo: str, kind: str | None, revision: str):
        if self._refused(repo, revision):
            return
        files = self.hub.find(repo, revision) or {}
        if kind == "tree":
            rows = [{"type": "file", "path": n, "size": len(b), "oid": _etag(n, b)} for n, b in files.items()]
            return self._json(rows)
        siblings = [{"rfilename": name} for name in files]
        self._json({"id": repo, "sha": self.hub.commit(repo, revision), "siblings": siblings, "private": False})

    def _file(self, repo: str, revision: str, name: str, *, body: bool):
        if self._refused(repo, revision):
            return
        files = self.hub.find(repo, revision) or {}
        if name not in files or name in self.hub.missing:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        data = files[name]
        headers = {"ETag": f'"{_etag(name, data)}"', "X-Repo-Commit": self.hub.commit(repo, revision)}
        headers |= {"X-Linked-Size": str(len(data)), "Accept-Ranges": "bytes"}
        if name in self.hub.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, status = 0, 200
        if asked:
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cuts = self.hub.cuts.get(name)
        self._send(status, headers, data[start:], body=body, cut=cuts.pop(0) if body and cuts else None)

    def _json(self, value):
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: Mapping[str, str], data: bytes, *, body: bool = True, cut: int | None = None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def _etag(name: str, data: bytes) -> str:
    """Large files by SHA-256; small ones by a hash of another kind, which is 40 characters long there, too."""
    large = name.endswith((".safetensors", ".bin", ".msgpack", ".h5", ".ot"))
    return (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
