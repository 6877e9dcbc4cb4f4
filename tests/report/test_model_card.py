"""The card of a compressed network: metrics in front as YAML, numbers as in the outcome, names that can't break it."""

import json

import yaml
from toy_runs import write_run

from autocompress.report.model_card import model_card
from autocompress.report.run_record import read_run


def front(text):
    _, yaml_text, body = text.split("---\n", 2)
    return yaml.safe_load(yaml_text), body


def test_metrics_stand_in_front(tmp_path):
    run = write_run(tmp_path / "toy")
    about, body = front(model_card(read_run(run)))
    told = json.loads((run / "outcome.json").read_text())["compressed"]
    (entry,) = about["model-index"]
    assert entry["name"] == "toy"
    metrics = {each["type"]: each["value"] for each in entry["results"][0]["metrics"]}
    assert metrics == {"accuracy": told["accuracy"], "kl_divergence": told["kl"], "size_bytes": 10_000}
    assert "onnx" in about["tags"]
    assert "| top-1 accuracy | 90.00 % (86.67 to 92.57 %) | 87.50 % (83.90 to 90.39 %) |" in body
    assert "```sh\nautocompress search --budget size=0.3\n```" in body
    assert "1 of 1 checks of the files passed" in body


def test_names_can_not_break_the_card(tmp_path):
    hostile = "---\n# <b>|x```"
    run = write_run(tmp_path / "toy", model=f"{hostile}:net")
    text = model_card(read_run(run))
    about, body = front(text)
    assert about["model-index"][0]["name"] == "toy"
    assert body.splitlines()[1] == "# --- \\# \\<b\\>\\|x\\`\\`\\`:net, compressed"
    assert text.count("```") == 4
