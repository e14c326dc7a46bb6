"""A Hugging Face hub on loopback: the part of its HTTP protocol that downloads use.

``HEAD``/``GET /ORG/NAME/resolve/REVISION/FILE`` with X-Repo-Commit and ETag; large files answer with a
redirect to a "CDN" and X-Linked-Etag (their sha256) and X-Linked-Size, as the hub does for LFS files;
errors carry X-Error-Code. ``GET /api/models/ORG/NAME/tree/REVISION`` lists the files.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories by name: a dict of files, or the status and X-Error-Code to refuse with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Any] = {}
        self.log: list[str] = []
        self.damage = False  # flip a byte on the way
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.server.log.append(f"{self.command} {path}")
        if m := re.fullmatch(r"/cdn/(\w+/[\w.]+)/(.+)", path):
            self.file(self.server.repos[m[1]][m[2]], {}, body)
        elif m := re.fullmatch(r"/(\w+/[\w.]+)/resolve/([\w.]+)/(.+)", path):
            self.resolve(m[1], m[2], m[3], body)
        elif m := re.fullmatch(r"/api/models/(\w+/[\w.]+)/tree/([\w.]+)", path):
            if self.known(m[1], m[2]):
                files = self.server.repos[m[1]]
                listing = [
                    {"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()
                ]
                self.reply(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
        else:
            self.reply(404, {})

    def known(self, repo: str, revision: str) -> bool:
        files = self.server.repos.get(repo)
        if files is None:
            self.reply(401, {"X-Error-Message": "Invalid username or password."})  # what strangers are told
        elif isinstance(files, tuple):
            self.reply(files[0], {"X-Error-Code": files[1]} if files[1] else {})
        elif revision not in ("main", COMMIT):
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def resolve(self, repo: str, revision: str, name: str, body: bool) -> None:
        if not self.known(repo, revision):
            return
        files = self.server.repos[repo]
        commit = {"X-Repo-Commit": COMMIT}
        if name not in files:
            self.reply(404, {**commit, "X-Error-Code": "EntryNotFound"})
        elif name.endswith(".json"):
            self.file(files[name], {**commit, "ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"'}, body)
        else:
            digest, size = hashlib.sha256(files[name]).hexdigest(), len(files[name])
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size)}
            # Another host than the hub's, as in life: clients follow redirects within the hub themselves.
            where = {"Location": f"http://localhost:{self.server.server_address[1]}/cdn/{repo}/{name}"}
            self.reply(302, {**commit, **linked, **where})

    def file(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        if self.server.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.reply(200, headers, content, body)

    def reply(self, status: int, headers: dict[str, str], content: bytes = b"", body: bool = True) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(content)
