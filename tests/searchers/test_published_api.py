"""What the published agents ask of the data, through the API."""

from types import SimpleNamespace

import numpy as np
import pytest

from autocompress import searching
from autocompress.config import Config
from autocompress.errors import InputError
from autocompress.jobs import check_labels
from autocompress.searchers.search import COMPARING, LABELLED, SEARCHERS


@pytest.mark.parametrize("method", ["amc", "haq", "galen", "releq"])
def test_unlabelled_data_is_refused_before_the_search(method):
    with pytest.raises(InputError) as caught:
        check_labels(Config(method=method), SimpleNamespace(classes=0, name="pictures"))
    assert str(caught.value) == (
        f"`method` {method} needs labelled data for its own reward, got pictures without labels; choose another method."
    )


@pytest.mark.parametrize(("method", "accuracy"), [("haq", 0.75), ("releq", 0.75), ("amc", np.nan), ("rl", np.nan)])
def test_the_original_is_measured_for_those_that_compare_with_it(method, accuracy, monkeypatch):
    monkeypatch.setattr(searching, "measure", lambda *_: SimpleNamespace(accuracy=0.75))
    job = SimpleNamespace(model=None, data=SimpleNamespace(search=lambda: None))
    assert searching.original_accuracy(job, Config(method=method)) == pytest.approx(accuracy, nan_ok=True)


def test_they_are_all_methods():
    assert COMPARING < LABELLED < set(SEARCHERS)
