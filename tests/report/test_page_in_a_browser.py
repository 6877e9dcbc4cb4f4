"""The page in headless Chromium, where there is one: no console errors, every table sorts, the picture answers."""

import json
import re
import shutil
import subprocess

import pytest
from toy_runs import write_run

from autocompress.report.run_page import run_page
from autocompress.report.run_record import read_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

PROBE = """
const found = { tables: [], detail: "", kin: [], hidden: 0, focus: "" };
for (const table of document.querySelectorAll("table.sortable")) {
  const columns = [...table.tHead.rows[0].cells].map((heading, column) => {
    const text = (cell) => cell.dataset.value ?? cell.textContent;
    const read = () => [...table.tBodies[0].rows].map((row) => text(row.cells[column]));
    const states = [read()];
    for (let click = 0; click < 3; click++) {
      heading.querySelector("button").click();
      states.push(read(), heading.getAttribute("aria-sort"));
    }
    return states;
  });
  found.tables.push(columns);
}
const first = document.querySelector(".bars button");
first.focus();
first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
found.focus = document.activeElement.textContent;
// a headless window may lack focus, and then tells of none
document.querySelectorAll(".bars > li")[1].dispatchEvent(new PointerEvent("pointerenter"));
found.detail = document.querySelector(".detail").textContent;
found.kin = [...document.querySelectorAll(".kin")].map((each) => each.dataset.name);
document.querySelector("input[value=macs]").click();
found.hidden = document.querySelectorAll(".bar[data-for=size]:not([hidden])").length;
found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.documentElement.dataset.found = JSON.stringify(found);
"""


def browsed(folder, text, probe, width):
    """What a script found in a page, and what the browser's console said."""
    page = folder / "page.html"
    page.write_text(text.replace("</body>", f"<script>{probe}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},800", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    return json.loads(match[1].replace("&quot;", '"').replace("&amp;", "&")), done.stderr


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a script found that clicked through the page in a narrow window."""
    folder = tmp_path_factory.mktemp("browser")
    return browsed(folder, run_page(read_run(write_run(folder / "toy"))), PROBE, 400)


def test_every_table_is_seen_whole_in_a_window_of_1200_pixels(tmp_path):
    """Long names, every column that a table of layers can have, and numbers of millions."""
    run = write_run(tmp_path / "toy", names=[f"encoder.layers.{at}.attention.attention.query" for at in range(3)])
    told = json.loads((run / "layers.json").read_text())
    told["expected_loss"]["policy"] = 0.004
    for each in told["layers"]:
        each |= {"measured_loss": 0.000123, "kind": "conv_transpose", "parameters": 12_345_678, "weights_left": 9}
        each["other_plans"]["policy"] = {"sparsity": 0.625, "weight_bits": 8, "activation_bits": 8}
        each["bytes"]["compressed"] = 1_234_567
    (run / "layers.json").write_text(json.dumps(told))
    probe = """
    const boxes = [...document.querySelectorAll(".scroll")].map((box) => box.scrollWidth - box.clientWidth);
    const page = document.documentElement;
    page.dataset.found = JSON.stringify({ boxes, aside: page.scrollWidth - page.clientWidth });
    """
    found, _ = browsed(tmp_path, run_page(read_run(run)), probe, 1200)
    assert found == {"boxes": [0, 0, 0, 0], "aside": 0}


def test_the_console_is_silent(seen):
    assert "CONSOLE" not in seen[1]


def test_every_column_of_every_table_sorts_both_ways_and_back(seen):
    assert len(seen[0]["tables"]) == 4
    for columns in seen[0]["tables"]:
        for before, up, one, down, two, again, three in columns:
            assert (one, two, three) == ("ascending", "descending", "none")
            assert again == before
            assert sorted(up) == sorted(down) == sorted(before)
            numbers = [[float(value) for value in each if value] for each in (up, down)] if _numeric(before) else []
            for values, reverse in zip(numbers, (False, True), strict=False):
                assert values == sorted(values, reverse=reverse)


def _numeric(values):
    return all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", value) for value in values if value)


def test_arrow_keys_go_from_layer_to_layer_and_pointing_tells_of_each(seen):
    assert seen[0]["focus"] == "second"
    assert seen[0]["kin"] == ["second"]
    assert seen[0]["detail"].startswith("second: conv 10 × 10 × 1 × 10, 4 bits, 50 % pruned. 500 bytes, 5.00 % of the")


def test_the_bars_can_show_another_measure(seen):
    assert seen[0]["hidden"] == 0


def test_a_narrow_window_needs_no_scrolling_aside(seen):
    assert seen[0]["wide"] is False
