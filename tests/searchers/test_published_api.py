"""What the published agents ask of the data, through the API."""

from types import SimpleNamespace

import pytest

from autocompress.errors import InputError
from autocompress.job.load import check_labels
from autocompress.job.options import search_request
from autocompress.searchers.search import SEARCHERS


@pytest.mark.parametrize("method", ["amc", "haq", "galen", "releq"])
def test_unlabelled_data_is_refused_before_the_search(method):
    with pytest.raises(InputError) as caught:
        check_labels(search_request(options={"method": method}), SimpleNamespace(classes=0, name="pictures"))
    assert str(caught.value) == (
        f"`method` {method} needs labelled data for its own reward, got pictures without labels; choose another method."
    )


@pytest.mark.parametrize(
    ("options", "compares"),
    [
        ({"method": "haq"}, True),
        ({"method": "releq"}, True),
        ({"method": "amc"}, False),
        ({"method": "rl"}, False),
        ({"agent": "ppo", "reward": "haq"}, True),
    ],
)
def test_the_original_is_measured_for_those_that_compare_with_it(options, compares):
    assert search_request(options=options).compares_with_original is compares


def test_who_compares_needs_labels():
    comparing = {name for name, searcher in SEARCHERS.items() if searcher.needs_original_accuracy}
    assert comparing < {name for name, searcher in SEARCHERS.items() if searcher.needs_labels}
