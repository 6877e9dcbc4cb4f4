"""The page of a running job: events as they happen, the report at the end, nothing without the token."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from autocompress.progress import Silent, Step
from autocompress.report.watch import Watched


def fetch(address, host=None):
    request = urllib.request.Request(address, headers={} if host is None else {"Host": host})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode(), dict(answer.headers)


class Told(Silent):
    def __init__(self):
        self.seen = []

    def note(self, text):
        self.seen.append(text)


def follow(address, found):
    """Read events until the server says that it is over."""
    with urllib.request.urlopen(f"{address}events", timeout=30) as answer:
        name = ""
        for line in answer:
            kind, _, text = line.decode().rstrip("\n").partition(": ")
            name = text if kind == "event" else name
            if kind == "data":
                found.append((name, json.loads(text)))
                if name == "over":
                    return


def test_the_page_follows_a_job_to_its_report():
    told, found = Told(), []
    with Watched(told) as page:
        text, headers = fetch(page.address)
        assert "<h1" in text
        assert headers["Referrer-Policy"] == "no-referrer"
        assert page.address.startswith("http://127.0.0.1:")
        reader = threading.Thread(target=follow, args=(page.address, found))
        reader.start()
        page.stage("search")
        while not found:  # the page is open
            reader.join(0.01)
        page.note("<b>a note</b>")
        page.advance(3, 9, "menus")
        page.step(Step(4, 10, True, 0.25, float("nan"), {"size": 90}, {"size": 100}))
        page.finish("<!doctype html><title>the report</title>")
    reader.join(20)
    assert told.seen == ["<b>a note</b>"]
    states = [state for name, state in found if name == "state"]
    assert states[-1] == {
        "stages": ["search"], "notes": ["<b>a note</b>"], "work": {"menus": [3, 9]}, "steps": [[5, 0.25]],
        "best": {"kl": 0.25, "accuracy": None, "resources": {"size": 90}, "limits": {"size": 100}, "evaluations": 5,
                 "total": 10},
        "tuning": None,
    }  # fmt: skip
    assert found[-2:] == [("report", "<!doctype html><title>the report</title>"), ("over", {})]
    with pytest.raises(urllib.error.URLError):
        fetch(page.address)  # it closes with the job


def fail(found):
    """A job that fails once its page is followed; returns who follows it."""
    with Watched(Silent()) as page:
        reader = threading.Thread(target=follow, args=(page.address, found))
        reader.start()
        page.stage("search")
        while not found:
            reader.join(0.01)
        raise RuntimeError("the job failed")


def test_a_job_that_fails_ends_the_page_too():
    found = []
    with pytest.raises(RuntimeError, match="the job failed"):
        fail(found)
    names = [name for name, _ in found]
    assert names[-1] == "over"
    assert "report" not in names


def test_nothing_is_shown_without_the_token_or_by_another_name():
    with Watched(Silent()) as page:
        root = page.address[: page.address.index("/", 7)]
        port = root.rpartition(":")[2]
        for address, host in (
            (f"{root}/", None), (f"{root}/events", None), (f"{root}/wrong/events", None),
            (f"{page.address}other", None), (f"{page.address}../", None), (page.address, f"evil.example:{port}"),
        ):  # fmt: skip
            with pytest.raises(urllib.error.HTTPError) as error:
                fetch(address, host)
            assert error.value.code == 404
        assert fetch(page.address, f"localhost:{port}")


def test_long_searches_keep_few_steps():
    with Watched(Silent()) as page:
        for index in range(3000):
            page.step(Step(index, 3000, False, 1.0 / (1 + index), 0.5, {}, {}))
        steps = page._state["steps"]
        assert len(steps) <= 400
        assert steps[0][0] == 1
        assert steps[-1][0] == 3000
