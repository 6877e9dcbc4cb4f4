"""A run's folder is there before its menus are, and can be resumed from then on; wrong options leave nothing."""

import pytest

from autocompress import InputError
from autocompress.config import Config, load_config
from autocompress.errors import WriteError
from autocompress.run.folder import RunFolder, claim
from autocompress.run.opening import opened

VERSIONS = {"autocompress": "0.1.0"}


class Killed(BaseException):
    pass


def start(config, error=None):
    with opened(config, "search", VERSIONS) as (path, now):
        if error is not None:
            raise error
        with RunFolder(path, now, VERSIONS, {"network": "n"}):
            pass
    return now


def names(path):
    return sorted(each.name for each in path.iterdir())


def test_the_options_are_there_at_once(tmp_path):
    out = tmp_path / "runs" / "a"
    with opened(Config(budget="size=0.5", out=out, seed=7), "search", VERSIONS):
        assert names(out) == [".lock", "config.next.yaml"]
        text = (out / "config.next.yaml").read_text()
    assert text.startswith("# autocompress 0.1.0\nmodel: digits\n")
    assert load_config(out / "config.next.yaml", {}).seed == 7


def test_killed_before_it_began_it_is_resumed_with_its_own_options(tmp_path):
    config = Config(budget="size=0.5", out=tmp_path / "a", seed=7)
    with pytest.raises(Killed):
        start(config, Killed())
    assert names(tmp_path / "a") == ["config.next.yaml"]
    with pytest.raises(InputError) as error:
        start(config.model_copy(update={"resume": True, "seed": 8}))
    assert str(error.value) == (
        "`seed` must be as in the run to resume, 7, got 8; leave it out, or choose another --out."
    )
    now = start(config.model_copy(update={"resume": True}))
    assert (now.resume, now.force) == (False, True)  # there is nothing to replay, and what lies there is its own
    assert names(tmp_path / "a") == ["config.yaml", "journal.jsonl"]


def test_killed_before_it_began_the_same_command_begins_again(tmp_path):
    config = Config(budget="size=0.5", out=tmp_path / "a")
    with pytest.raises(Killed):
        start(config, Killed())
    start(config)
    assert names(tmp_path / "a") == ["config.yaml", "journal.jsonl"]


def test_what_force_replaces_stays_until_the_new_run_begins(tmp_path):
    out = tmp_path / "a"
    start(Config(budget="size=0.5", out=out, seed=1))
    forced = Config(budget="size=0.5", out=out, seed=2, force=True)
    with pytest.raises(InputError, match=r"^wrong$"):
        start(forced, InputError("wrong"))
    assert names(out) == ["config.yaml", "journal.jsonl"]
    with pytest.raises(Killed):
        start(forced, Killed())
    assert load_config(out / "config.yaml", {}).seed == 1
    with pytest.raises(InputError, match=r"^`seed` must be as in the run to resume, 2, got 1;"):
        claim(Config(budget="size=0.5", out=out, seed=1, resume=True))
    start(Config(budget="size=0.5", out=out, seed=2, resume=True))
    assert load_config(out / "config.yaml", {}).seed == 2
    assert names(out) == ["config.yaml", "journal.jsonl"]


def test_wrong_options_leave_nothing_and_a_full_disk_leaves_the_way_on(tmp_path):
    config = Config(budget="size=0.5", out=tmp_path / "runs" / "a")
    with pytest.raises(InputError):
        start(config, InputError("wrong"))
    assert names(tmp_path) == []
    with pytest.raises(WriteError):
        start(config, WriteError("full", 28))
    assert names(tmp_path / "runs" / "a") == ["config.next.yaml"]


def test_what_another_process_finished_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    """The folder is looked at again once it is held."""
    config, looked = Config(budget="size=0.5", out=tmp_path / "a"), []

    def first(asked):
        looked.append(asked)
        path = claim(asked)
        if len(looked) == 1:
            with RunFolder(path, config, VERSIONS, {"network": "other"}):
                pass
        return path

    monkeypatch.setattr("autocompress.run.opening.claim", first)
    with pytest.raises(InputError) as error:
        start(config)
    assert str(error.value) == (
        f"`out` must be a new folder, got {tmp_path / 'a'}, which holds a run; "
        "pass --force to replace it or --resume to continue it."
    )
