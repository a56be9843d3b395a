"""A small web server that only answers questions: for this machine alone, unless its owner says otherwise.

Standard library. While it serves a loopback address it answers only requests that name this machine as their host: a
page of another site could otherwise read the answers through a name that it points at 127.0.0.1.
"""

import ipaddress
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

from polypfed.core.errors import ConfigError

HTML, JSON, TEXT = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Asked:
    """A GET request; of a query's repeated values the last counts."""

    path: str
    query: Mapping[str, str]
    headers: Message


@dataclass(frozen=True)
class Answer:
    """What it is answered."""

    body: bytes = b""
    kind: str = TEXT
    code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class WebServer(ABC):
    """Answers from a thread of its own. Use it as a context manager.

    Args:
        host: an address of this machine.
        port: 0 takes a free one; see `url`.
        policy: the Content-Security-Policy of all that it serves.
        where: what an error names as its place.

    Raises:
        ConfigError: the address or port cannot be used.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, policy: str = "default-src 'none'", where: str = "port"
    ) -> None:
        self.host, self.local, self.policy = host, is_loopback(host), policy
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            problem = f"{host}:{port} cannot be used ({error.strerror})"
            raise ConfigError(problem, where=where, remedy="Choose another port; 0 is a free one") from None
        self._server.site = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @abstractmethod
    def answer(self, asked: Asked) -> Answer:
        """The answer; called from several threads at once."""

    @property
    def port(self) -> int:
        """The port that it serves."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """Where to look."""
        return f"http://{self.host}:{self.port}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def is_loopback(host: str) -> bool:
    """True if only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    site: WebServer


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "polypfed", ""
    timeout = 30

    def do_GET(self) -> None:
        site, url = self.server.site, urlsplit(self.path)
        named = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if site.local and not is_loopback(named):
            return self._send(Answer(b"only for this machine", code=403))
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        return self._send(site.answer(Asked(url.path, query, self.headers)))

    def _send(self, answer: Answer) -> None:
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": self.server.site.policy}
        headers |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} | dict(answer.headers)
        if answer.code != 204:
            headers |= {"Content-Type": answer.kind, "Content-Length": str(len(answer.body))}
        try:
            self.send_response(answer.code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)
        except (ConnectionError, TimeoutError):
            pass  # the reader has gone

    def log_message(self, *_: object) -> None:
        """Nothing: a line per request helps nobody, and a token would be in it."""
