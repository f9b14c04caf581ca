"""A model hub in this process: the part of Hugging Face's HTTP API by which files are fetched."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit


class Hub:
    """Serves one repository: every commit is a folder, ``main`` is the last. Keeps what was asked for.

    With a token, requests without it are refused.
    """

    def __init__(self, repository: str, commits: dict[str, Path], token: str | None = None) -> None:
        self.repository, self.commits, self.token = repository, commits, token
        self.fetched: list[str] = []
        """Files whose content was sent."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                """Tests read no access log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(request, 401, b"", {"X-Error-Code": "GatedRepo"})
        for prefix, answer in (
            (f"/api/models/{self.repository}/revision/", self._about),
            (f"/api/models/{self.repository}/tree/", self._tree),
        ):
            if path.startswith(prefix):
                commit = self._commit(path.removeprefix(prefix))
                if commit is None:
                    return self._send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
                return self._send(request, 200, json.dumps(answer(commit)).encode() if body else b"", {})
        prefix = f"/{self.repository}/resolve/"
        revision, _, name = path.removeprefix(prefix).partition("/")
        commit = self._commit(revision) if path.startswith(prefix) else None
        file = None if commit is None else self.commits[commit] / name
        if commit is None or file is None or not file.is_file():
            code = "RepoNotFound" if not path.startswith(prefix) else "EntryNotFound"
            return self._send(request, 404, b"", {"X-Error-Code": code})
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        if body:
            self.fetched.append(name)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Length": str(len(data))}
        return self._send(request, 200, data if body else b"", headers)

    def _commit(self, revision: str) -> str | None:
        named = revision.strip("/")
        return list(self.commits)[-1] if named == "main" else named if named in self.commits else None

    def _about(self, commit: str) -> dict[str, object]:
        names = [{"rfilename": entry["path"]} for entry in self._tree(commit)]
        return {"id": self.repository, "sha": commit, "siblings": names}

    def _tree(self, commit: str) -> list[dict[str, object]]:
        root = self.commits[commit]
        return [
            {
                "type": "file",
                "path": path.relative_to(root).as_posix(),
                "size": path.stat().st_size,
                "oid": "0",
            }
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ]

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        if data:
            request.wfile.write(data)
