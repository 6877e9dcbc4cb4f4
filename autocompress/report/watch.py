"""A job on a page while it runs: a server on this machine alone, which closes with the job."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from autocompress.files import or_none
from autocompress.progress import Progress, Step

HOST = "127.0.0.1"
_PAUSE = 0.5  # seconds between two events, at least
_KEPT = 400  # steps that the page gets; of more, every second one
_FAREWELL = 5.0  # seconds that pages get to take the report when the job ends


class Watched:
    """A `Progress` that tells another one, and everyone who has the page open.

    Args:
        told: progress that is told of everything as well.

    Attributes:
        address: address of the page, which holds a token; whoever lacks it sees nothing.
    """

    def __init__(self, told: Progress) -> None:
        self._told = told
        self._state: dict[str, Any] = {"stages": [], "notes": [], "work": {}, "steps": [], "best": None, "tuning": None}
        self._changed = threading.Condition()
        self._version, self._report, self._is_over, self._readers = 0, "", False, 0
        token = secrets.token_urlsafe(24)
        self._server = ThreadingHTTPServer((HOST, 0), _handler(token, self))
        self._server.daemon_threads = True
        self.address = f"http://{HOST}:{self._server.server_address[1]}/{token}/"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._readers == 0, _FAREWELL)
        self._server.shutdown()
        self._server.server_close()

    def finish(self, report: str) -> None:
        """Give the report to every page that is open, in the place of what it shows.

        Args:
            report: the page of the finished run.
        """
        self._change(lambda: setattr(self, "_report", report))

    def stage(self, text: str) -> None:
        self._change(lambda: self._state["stages"].append(text))
        self._told.stage(text)

    def note(self, text: str) -> None:
        self._change(lambda: self._state["notes"].append(text))
        self._told.note(text)

    def advance(self, done: int, total: int, what: str) -> None:
        self._change(lambda: self._state["work"].update({what: [done, total]}))
        self._told.advance(done, total, what)

    def step(self, step: Step) -> None:
        self._change(lambda: self._add(step))
        self._told.step(step)

    def tuning(self, step: int, total: int, loss: float, accuracy: float, seconds_left: float) -> None:
        self._change(lambda: self._state.update(tuning=[step, total, loss, round(seconds_left)]))
        self._told.tuning(step, total, loss, accuracy, seconds_left)

    def events(self, send: Callable[[str, str], None]) -> None:
        """Send the state whenever it has changed, and at last the report; until the job is over.

        Args:
            send: function that sends an event's name and its text.
        """
        seen = -1
        with self._changed:
            self._readers += 1
        try:
            while True:
                seen, state, report, over = self._news(seen)
                send("state", state)
                if report:
                    send("report", json.dumps(report))
                if report or over:
                    send("over", "{}")
                    return
                threading.Event().wait(_PAUSE)
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    def _news(self, seen: int) -> tuple[int, str, str, bool]:
        """The state after version `seen`, as (version, JSON text, report or nothing, whether the job is over)."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen or self._is_over)
            return self._version, json.dumps(self._state), self._report, self._is_over

    def _change(self, change: Callable[[], Any]) -> None:
        with self._changed:
            change()
            self._version += 1
            self._changed.notify_all()

    def _add(self, step: Step) -> None:
        steps = self._state["steps"]
        steps.append([step.index + 1, step.best_kl])
        if len(steps) > _KEPT:
            del steps[1::2]
        best = {
            "kl": step.best_kl,
            "accuracy": or_none(step.best_accuracy),
            "resources": dict(step.resources),
            "limits": dict(step.limits),
        }
        self._state["best"] = {**best, "evaluations": step.index + 1, "total": step.total}


def _handler(token: str, watched: Watched) -> type[BaseHTTPRequestHandler]:
    """What answers the requests of one server."""
    return type("Handler", (_Handler,), {"token": token, "watched": watched})


class _Handler(BaseHTTPRequestHandler):
    """Answers with the page and its events below the token, and with nothing else."""

    token: str
    watched: Watched

    def do_GET(self) -> None:
        parts = self.path.split("/")
        allowed = len(parts) == 3 and hmac.compare_digest(parts[1].encode(), self.token.encode()) and self._is_ours()
        if allowed and parts[2] == "":
            self._page()
        elif allowed and parts[2] == "events":
            self._events()
        else:
            self.send_error(404)

    def _is_ours(self) -> bool:
        """Whether the page was asked for by the server's own address: another name may be a trick of a website."""
        port = self.server.server_address[1]  # type: ignore[index]
        return self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}")

    def _page(self) -> None:
        from autocompress.report.run_page import live_page

        content = live_page().encode()
        self._begin("text/html; charset=utf-8", len(content))
        self.wfile.write(content)

    def _events(self) -> None:
        self._begin("text/event-stream", None)
        try:
            self.watched.events(lambda name, text: self._send(f"event: {name}\ndata: {text}\n\n"))
        except OSError:  # the page was closed
            return

    def _begin(self, kind: str, length: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")  # the address holds the token
        self.send_header("X-Content-Type-Options", "nosniff")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Standard error belongs to the job's own progress."""
