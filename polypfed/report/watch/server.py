"""What the live view answers: one run, to one person; read-only, and for this machine unless it has a token."""

import hashlib
import hmac
import json
import time
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from polypfed.core.errors import ConfigError, DataError
from polypfed.core.web import HTML, JSON, Answer, Asked, WebServer, is_loopback
from polypfed.report.html import el
from polypfed.report.watch.page import page, parts, policy
from polypfed.report.watch.state import look

_LEAST_TOKEN = 16
_COOKIE = "polypfed-watch"


class WatchServer(WebServer):
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
        self.folder, self.token = folder, token
        if not is_loopback(host) and token is None:
            raise ConfigError(f"{host} can be reached by others", where="--host", remedy="Give a token")
        if token is not None and len(token) < _LEAST_TOKEN:
            raise ConfigError(f"has fewer than {_LEAST_TOKEN} characters", where="token", remedy="Take a longer one")
        super().__init__(host, port, policy(), where="watch")

    @property
    def url(self) -> str:
        """Where to look, the token included."""
        return super().url + (f"?token={self.token}" if self.token else "")

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

    def answer(self, asked: Asked) -> Answer:
        """The page and its state, to whoever knows the token."""
        if self.token is not None and not _knows(self.token, asked):
            return Answer(b"a token is needed: open the address that polypfed watch has printed", code=401)
        if asked.path == "/" and self.token is not None and "token" in asked.query:
            return _remember(self.token)
        try:
            return self._show(asked)
        except DataError as error:
            words = str(error)
            return Answer(el("p", words).encode(), HTML, 500) if asked.path == "/" else Answer(words.encode(), code=500)

    def _show(self, asked: Asked) -> Answer:
        if asked.path == "/":
            return Answer(self.document(), HTML)
        if asked.path == "/state":
            state = self.state(asked.query.get("seen", ""))
            return Answer(code=204) if state is None else Answer(state, JSON)
        return Answer(b"nothing here", code=404)


def _knows(token: str, asked: Asked) -> bool:
    try:
        cookie = SimpleCookie(asked.headers.get("Cookie", "")).get(_COOKIE)
    except CookieError:
        cookie = None
    bearer = asked.headers.get("Authorization", "").removeprefix("Bearer ")
    given = (asked.query.get("token", ""), bearer, "" if cookie is None else cookie.value)
    return any(hmac.compare_digest(value.encode(), token.encode()) for value in given)


def _remember(token: str) -> Answer:
    """The token goes out of the address bar, and with it out of the history, into a cookie of this page."""
    cookie = f"{_COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
    return Answer(code=303, headers={"Location": "/", "Set-Cookie": cookie})
