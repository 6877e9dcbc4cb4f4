"""Contract suites: checks that everybody who adds an entry from outside can run on it.

There is one check for each extension point, with the arguments of the `register_…` function but the name:

    from autocompress.testing import check_criterion

    def test_my_criterion():
        check_criterion(my_order)

A check raises `ContractError`, an AssertionError whose message says the rule and what was found. The package's own
entries pass the same checks.
"""

from autocompress.testing.contract import ContractError
from autocompress.testing.menus import check_criterion, check_quantizer
from autocompress.testing.searchers import check_agent, check_reward, check_searcher
from autocompress.testing.sources import check_data, check_model
from autocompress.testing.targets import check_target
from autocompress.testing.tasks import check_task

__all__ = [
    "ContractError",
    "check_agent",
    "check_criterion",
    "check_data",
    "check_model",
    "check_quantizer",
    "check_reward",
    "check_searcher",
    "check_target",
    "check_task",
]
