"""A small web server that shows one run to one person: read-only, and for this machine unless it has a token."""

import hashlib
import hmac
import ipaddress
import json
import threading
import time
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from polypfed.core.errors import ConfigError, DataError
from polypfed.report.html import el
from polypfed.report.watch.page import page, parts, policy
from polypfed.report.watch.state import look

_LEAST_TOKEN = 16
_COOKIE = "polypfed-watch"


class WatchServer:
    """Serve the live view of the run in `folder`. Use it as a context manager.

    Args:
        folder: of the run; it may be empty still.
        host: an address of this machine. Any but a loopback one needs a token.
        port: 0 takes a free one; see `url`.
        token: what a browser must know; None asks for none.

    Raises:
        ConfigError: the address or port cannot be used, or the token is missing or short.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> None:
        self.folder, self.token, self.local = folder, token, _loopback(host)
        if not self.local and token is None:
            raise ConfigError(f"{host} can be reached by others", where="--host", remedy="Give a token")
        if token is not None and len(token) < _LEAST_TOKEN:
            raise ConfigError(f"has fewer than {_LEAST_TOKEN} characters", where="token", remedy="Take a longer one")
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            problem, remedy = (
                f"{host}:{port} cannot be used ({error.strerror})",
                "Choose another --port; 0 is a free one",
            )
            raise ConfigError(problem, where="watch", remedy=remedy) from None
        self._host, self._server.watch = host, self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self.page_policy = policy()

    @property
    def url(self) -> str:
        """Where to look, the token included."""
        query = f"?token={self.token}" if self.token else ""
        return f"http://{self._host}:{self._server.server_port}/{query}"

    def __enter__(self) -> "WatchServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def document(self) -> bytes:
        """The page."""
        clock = time.time()
        return page(look(self.folder, clock), clock).encode()

    def state(self, seen: str) -> bytes | None:
        """What the page shows now as JSON, or None if it is what the browser has `seen`."""
        clock = time.time()
        shown = parts(look(self.folder, clock))
        digest = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
        return None if digest == seen else json.dumps({"now": clock, "seen": digest, "parts": shown}).encode()


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    watch: WatchServer


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "polypfed", ""
    timeout = 30

    def do_GET(self) -> None:
        watch, asked = self.server.watch, urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(asked.query).items()}
        if watch.local and not self._named_as_this_machine():
            return self._answer(403, b"only for this machine")
        if watch.token is not None and not self._knows(watch.token, query):
            return self._answer(401, b"a token is needed: open the address that polypfed watch has printed")
        if asked.path == "/" and watch.token is not None and "token" in query:
            return self._remember(watch.token)
        try:
            return self._show(asked.path, query)
        except DataError as error:
            shown = el("p", str(error)).encode() if asked.path == "/" else str(error).encode()
            return self._answer(500, shown, "text/html; charset=utf-8" if asked.path == "/" else "text/plain")

    def _show(self, path: str, query: dict[str, str]) -> None:
        watch = self.server.watch
        if path == "/":
            return self._answer(200, watch.document(), "text/html; charset=utf-8")
        if path == "/state":
            state = watch.state(query.get("seen", ""))
            return self._answer(204, b"") if state is None else self._answer(200, state, "application/json")
        return self._answer(404, b"nothing here")

    def _named_as_this_machine(self) -> bool:
        """A page of another site could otherwise read the answers through a name that it points at 127.0.0.1."""
        return _loopback(urlsplit(f"//{self.headers.get('Host', '')}").hostname or "")

    def _knows(self, token: str, query: dict[str, str]) -> bool:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            cookie = None
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        given = (query.get("token", ""), bearer, "" if cookie is None else cookie.value)
        return any(hmac.compare_digest(value.encode(), token.encode()) for value in given)

    def _remember(self, token: str) -> None:
        """The token goes out of the address bar, and with it out of the history, into a cookie of this page."""
        cookie = f"{_COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
        self._answer(303, b"", extra={"Location": "/", "Set-Cookie": cookie})

    def _answer(self, code: int, body: bytes, kind: str = "text/plain", extra: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        headers |= {"Content-Security-Policy": self.server.watch.page_policy, "X-Content-Type-Options": "nosniff"}
        headers |= {"Referrer-Policy": "no-referrer"} | (extra or {})
        try:
            self.send_response(code)
            for name, value in headers.items():
                if code != 204 or not name.startswith("Content-Le"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except (ConnectionError, TimeoutError):
            pass  # the browser has gone

    def log_message(self, *_: Any) -> None:
        """Nothing: a line per second helps nobody, and a token would be in it."""
