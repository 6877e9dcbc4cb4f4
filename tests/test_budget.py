"""Budgets: what a text means, in whole units, and messages for texts that mean nothing."""

from fractions import Fraction

import pytest

from autocompress import Budget, InputError
from autocompress.budget import RESOURCES, format_bytes, parse_bytes
from autocompress_envs.problem import tables

FORM = "`budget` must read RESOURCE=AMOUNT such as size=0.1, size=40kB or macs=50%, got"
ORIGINAL = {"size": 154_832, "macs": 1_001, "bitops": 10**12, "memory": 8_192}


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("size=0.12", {"size": 18_579}),  # 18,579.84, rounded down
        ("size=12%", {"size": 18_579}),
        ("size=.5", {"size": 77_416}),
        ("size=1", {"size": 154_832}),  # up to 1: a fraction
        ("size=1.5", {"size": 1}),  # above 1: bytes
        ("size=150%", {"size": 232_248}),
        ("size=40000", {"size": 40_000}),
        ("size=40kB", {"size": 40_000}),
        ("size=40KiB", {"size": 40_960}),
        ("size=0.04MB", {"size": 40_000}),
        ("size=1k", {"size": 1_000}),
        ("size=1b", {"size": 1}),
        ("macs=0.5", {"macs": 500}),
        ("macs=1e2", {"macs": 100}),
        ("macs=1e-3", {"macs": 1}),
        ("bitops=2G", {"bitops": 2 * 10**9}),
        ("memory=2MiB", {"memory": 2 * 2**20}),
        (" size = 0.5 , macs = 50% ", {"size": 77_416, "macs": 500}),
        (["size=0.5", "macs=0.1,memory=1kib"], {"size": 77_416, "macs": 100, "memory": 1_024}),
    ],
)
def test_meaning(text, limits):
    assert Budget.parse(text).resolve(ORIGINAL) == limits


def test_fractions_are_exact():
    """0.29 as a binary fraction is below 0.29, and would lose the hundredth byte."""
    assert Budget.parse("size=0.29").resolve({"size": 100}) == {"size": 29}
    assert Budget.parse("size=0.29").limits[0].amount == Fraction(29, 100)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("size=12%", "size=12%"),
        ("size=40000,macs=0.25%", "size=40000,macs=0.25%"),
        ("bitops=2G", "bitops=2000000000"),
        ("size=1", "size=100%"),
        ("memory=1B", "memory=1b"),  # a bare 1 would be all of it
        ("size=.5b", "size=0.5b"),
        ("size=1.5", "size=1.5"),
        ("size=1e-9", "size=0.0000001%"),
        ("size=0.12345678901234567", "size=12.345678901234567%"),
        ("size=9007199254740993", "size=9007199254740993"),  # 2 ** 53 + 1, no float
    ],
)
def test_normal_form_reads_back(text, normal):
    budget = Budget.parse(text)
    assert str(budget) == normal
    assert Budget.parse(normal) == budget
    assert Budget.parse(budget) == budget


@pytest.mark.parametrize("unit", ["", "%", "b", "k", "KiB", "MB", "GiB", "T"])
@pytest.mark.parametrize("number", ["1", ".5", "1.0", "1.5", "0.001", "999.999", "3e-4", "2e9", "0.1000000000000001"])
def test_any_text_survives_its_normal_form(number, unit):
    budget = Budget.parse(f"size={number}{unit},macs={number}{unit}")
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "got"),
    [("size=1e-9", "0.0000001%"), ("size=0.5b", "0.5b"), ("size=0.0006%", "0.0006%")],  # 0.93 of a byte
)
def test_nothing_is_no_budget(text, got):
    with pytest.raises(InputError) as error:
        Budget.parse(text).resolve(ORIGINAL)
    assert str(error.value) == (
        f"`budget` of size must be at least 1 of the original's 154,832 bytes, got {got}; raise it."
    )
    assert Budget.parse("size=0.0007%").resolve(ORIGINAL) == {"size": 1}


def test_resources_are_those_of_the_environment():
    """Twice, because the environment stands alone and `--help` needs no NumPy; they must not drift apart."""
    assert list(RESOURCES.items()) == list(tables.RESOURCES.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", f"{FORM} '0.5'."),
        ("size", f"{FORM} 'size'."),
        ("size=", f"{FORM} 'size='."),
        ("size=x", f"{FORM} 'size=x'."),
        ("size=-1", f"{FORM} 'size=-1'."),
        ("size=1 pound", f"{FORM} 'size=1 pound'."),
        ("size=0.1,", f"{FORM} ''."),
        ("flops=0.5", "`budget resource` must be one of bitops, energy, latency, macs, memory, size, got 'flops'."),
        ("size=0", "`budget` of size must be above 0, got '0'."),
        ("size=0%", "`budget` of size must be above 0, got '0%'."),
        ("size=0.1,size=0.2", "`budget` must name each resource once and at least one, got ['size', 'size']."),
        ([], "`budget` must name each resource once and at least one, got []."),
    ],
)  # fmt: skip
def test_wrong_texts(text, message):
    with pytest.raises(InputError) as error:
        Budget.parse(text)
    assert str(error.value) == message


@pytest.mark.parametrize(("spent", "is_met"), [(99, True), (100, True), (101, False)])
def test_limit_is_inclusive(spent, is_met):
    assert tables.is_within({"size": spent, "macs": 10**9}, {"size": 100}) is is_met


def test_every_limit_counts():
    assert not tables.is_within({"size": 100, "macs": 6}, {"size": 100, "macs": 5})


@pytest.mark.parametrize(
    ("text", "amount"),
    [("4GB", 4 * 10**9), ("1.5 kB", 1_500), ("512MiB", 512 * 2**20), ("2e9", 2 * 10**9), (" 7 ", 7), ("0.5gib", 2**29)],
)
def test_bytes(text, amount):
    assert parse_bytes(text, "memory") == amount


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("much", "`memory` must be a number of bytes such as 500MB or 4GB, got 'much'."),
        ("50%", "`memory` must be a number of bytes such as 500MB or 4GB, got '50%'."),
        ("-1GB", "`memory` must be a number of bytes such as 500MB or 4GB, got '-1GB'."),
        ("0.2b", "`memory` must be at least 1 byte, got '0.2b'."),
    ],
)
def test_what_is_no_amount_of_bytes(text, message):
    with pytest.raises(InputError) as error:
        parse_bytes(text, "memory")
    assert str(error.value) == message


@pytest.mark.parametrize("amount", [0, 1, 999, 1_000, 123_456, 10**6, 999_999_999, 10**9, 15_340_000_000])
def test_bytes_for_people_are_rounded_up_and_read_again(amount):
    if amount:
        assert amount <= parse_bytes(format_bytes(amount), "memory") <= 1.11 * amount + 1_000


@pytest.mark.parametrize(
    ("text", "normal", "limit"),
    [
        ("energy=0.5", "energy=50%", 2_500),
        ("energy=2mJ", "energy=2000000000pJ", 2 * 10**9),
        ("energy=800 nJ", "energy=800000pJ", 800_000),
        ("energy=3pJ", "energy=3pJ", 3),
    ],
)
def test_energies(text, normal, limit):
    budget = Budget.parse(text)
    assert str(budget) == normal
    assert Budget.parse(normal) == budget
    assert budget.resolve({"energy": 5_000}) == {"energy": limit}
    assert budget.counted("budget") == budget


@pytest.mark.parametrize("number", ["2", "5ms", "3 watts", "x"])
def test_energies_that_are_none(number):
    with pytest.raises(InputError) as error:
        Budget.parse(f"energy={number}")
    assert str(error.value) == (
        "`budget` of energy must be a fraction of the original's energy such as 0.5 or 50%, or a modelled energy a "
        f"sample such as 2mJ (pJ, nJ, uJ, mJ or J), got {number!r}."
    )
