"""Annotations of Prodigy and Labelbox: what counts, what is left out, and what is refused."""

import base64
import json

import pytest
from data_toys import PLAIN, message, png, saved_tokenizer

from autocompress.data import load_data


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return saved_tokenizer(tmp_path_factory.mktemp("tokenizer"), "good", "bad", "film")


OPTIONS = [{"id": name, "text": name.title()} for name in ("pos", "neg", "mixed")]


def choice(text, *accepted, answer="accept"):
    return {"text": text, "options": OPTIONS, "accept": list(accepted), "answer": answer, "_view_id": "choice"}


def test_prodigy_choices(tmp_path, tokenizer):
    lines = [
        choice("good film", "pos"),
        choice("bad film", "neg", answer="reject"),
        choice("film", answer="ignore"),
        choice("bad", "neg"),
        choice("film"),
        choice("good", "pos"),
    ]
    file = written(tmp_path / "a.jsonl", lines)
    data = load_data(f"prodigy:{file}", tokenizer=tokenizer)
    inputs, labels = data.train.load(range(3))
    assert inputs.tensors[0].tolist() == [[2, 4], [3, 0], [2, 0]]
    assert (data.classes, labels.tolist(), data.test) == (("mixed", "neg", "pos"), [2, 1, 2], None)
    assert data.notes == (f"3 of 6 annotations of {file} are left out: 1 ignored, 1 rejected, 1 without a label",)
    ordered = load_data(f"prodigy:{file}", tokenizer=tokenizer, data_args={"classes": ["pos", "neg", "mixed"]})
    assert ordered.train.labels.tolist() == [0, 1, 0]
    assert message(f"prodigy:{file}", tokenizer=tokenizer, data_args={"classes": ["pos"]}) == (
        "`classes` must name every label, got pos and the label 'neg'."
    )


def test_prodigy_labels_and_splits(tmp_path, tokenizer):
    rows = [("good", "A"), ("bad", "B"), ("film", "A")]
    for part in ("train", "dev"):
        written(tmp_path / f"{part}.jsonl", [{"text": t, "label": name, "answer": "accept"} for t, name in rows])
    data = load_data(f"prodigy:{tmp_path}", tokenizer=tokenizer)
    assert (data.classes, data.train.labels.tolist(), len(data.test), data.notes) == (("A", "B"), [0, 1, 0], 3, ())


def test_prodigy_without_labels(tmp_path, tokenizer):
    file = written(tmp_path / "a.jsonl", [{"text": text} for text in ("good", "bad", "film")])
    data = load_data(f"prodigy:{file}", tokenizer=tokenizer)
    assert (data.classes, data.train.load([0])[1], data.notes) == ((), None, ())


def test_prodigy_images_beside_the_file_and_inline(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/7.png").write_bytes(png(7))
    inline = "data:image/png;base64," + base64.b64encode(png(9)).decode()
    lines = [{"image": "images/7.png", "label": "A"}, {"image": inline, "label": "B"}] * 2
    data = load_data(f"prodigy:{written(tmp_path / 'a.jsonl', lines)}", **PLAIN)
    inputs, labels = data.train.load([0, 1])
    assert (inputs[:, 0, 0, 0] * 255).round().tolist() == [7, 9]
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            {"text": "a", "accept": ["x", "y"]},
            "`data` prodigy: must have one class a sample, got 2 in line 2 of {file}.",
        ),
        ({"text": "a", "answer": "yes"}, "`answer` must be accept, reject or ignore, got 'yes' in line 2 of {file}."),
        (
            {"label": "A"},
            "`data` prodigy: must have a text or an image in every line, got neither in line 2 of {file}.",
        ),
        ([1], "`data` must be JSON objects, one a line, got line 2 of {file}."),
        ({"image": "a.png", "label": "A"}, "`data` must hold texts or images, got both in {file}."),
    ],
)
def test_prodigy_lines_that_are_refused(tmp_path, tokenizer, line, expected):
    file = written(tmp_path / "a.jsonl", [{"text": "good", "label": "A"}, line, {"text": "bad", "label": "B"}])
    assert message(f"prodigy:{file}", tokenizer=tokenizer) == expected.format(file=file)


def test_text_that_is_not_utf8(tmp_path, tokenizer):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n')
    assert message(f"prodigy:{file}", tokenizer=tokenizer) == (
        f"`data` must be UTF-8, got another byte in line 2 of {file}."
    )


def test_images_from_elsewhere_are_not_fetched(tmp_path):
    for image, expected in (
        ("https://example.org/a.png", "`data` must name images beside {file}, got the address "
         "'https://example.org/a.png'; nothing is downloaded: put the images there, and name them by relative paths."),
        ("a.png", "`data` must name images beside {file}, got 'a.png', which is not there."),
        ("data:image/png;base64,?", "`data` must hold inline images in base64, got 'data:image/png;base64,?' in "
         "{file}."),
    ):  # fmt: skip
        file = written(tmp_path / "a.jsonl", [{"image": image, "label": "A"}] * 3)
        assert message(f"prodigy:{file}") == expected.format(file=file)


# --- Labelbox --------------------------------------------------------------------------------------------------------


def row(data, *answers, name="mood", mime="text/plain", external="row.txt", skipped=False, status="DONE"):
    """A data row as version 2 of Labelbox's export has it, with a label for each answer."""
    labels = [
        {
            "performance_details": {"skipped": skipped},
            "annotations": {
                "objects": [],
                "classifications": [{"name": name, "radio_answer": {"name": answer, "value": answer.lower()}}],
            },
        }
        for answer in answers
    ]
    return {
        "data_row": {"id": "1", "external_id": external, "row_data": data},
        "media_attributes": {"mime_type": mime},
        "projects": {"p": {"labels": labels, "project_details": {"workflow_status": status}}},
    }


def test_labelbox_texts(tmp_path, tokenizer):
    lines = [
        row("good film", "Good"),
        row("bad", "Bad"),
        row("film", "Good", "Bad"),
        row("film", "Good", skipped=True),
        row("film", "Good", status="IN_REWORK"),
        row("film", status="TO_LABEL"),
        row("good", "Good", "Good"),
    ]
    file = written(tmp_path / "a.ndjson", lines)
    data = load_data(f"labelbox:{file}", tokenizer=tokenizer)
    inputs, labels = data.train.load(range(3))
    assert inputs.tensors[0].tolist() == [[2, 4], [3, 0], [2, 0]]
    assert (data.classes, labels.tolist()) == (("Bad", "Good"), [1, 0, 1])
    assert data.notes == (
        f"4 of 7 annotations of {file} are left out: 1 ignored, 1 labelled in several ways, 1 rejected, "
        "1 without a label",
    )


def test_labelbox_images_by_their_external_id(tmp_path):
    (tmp_path / "7.png").write_bytes(png(7))
    image = {"mime": "image/png", "external": "7.png"}
    lines = [row("https://storage.example.org/7.png?signed", "A", **image), row("7.png", "B", **image)] * 2
    data = load_data(f"labelbox:{written(tmp_path / 'a.ndjson', lines)}", **PLAIN)
    inputs, labels = data.train.load([0, 1])
    assert (inputs[:, 0, 0, 0] * 255).round().tolist() == [7, 7]
    assert labels.tolist() == [0, 1]


def test_labelbox_of_several_questions(tmp_path, tokenizer):
    two = row("good", "Good")
    answers = two["projects"]["p"]["labels"][0]["annotations"]["classifications"]
    answers.append({"name": "length", "checklist_answers": [{"name": "Short"}]})
    file = written(tmp_path / "a.ndjson", [two] * 3)
    spec = f"labelbox:{file}"
    assert message(spec, tokenizer=tokenizer) == (
        f"`data_args` must name the question whose answers are the classes, got length, mood in line 1 of {file}; pass "
        "--data-args '{label: length}'."
    )
    assert load_data(spec, tokenizer=tokenizer, data_args={"label": "length"}).classes == ("Short",)
    answers[1]["checklist_answers"].append({"name": "Odd"})
    written(file, [two] * 3)
    assert message(spec, tokenizer=tokenizer, data_args={"label": "length"}) == (
        f"`data` labelbox: must have one class a sample, got 2 in line 1 of {file}."
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"text": "a"}, "`data` labelbox: must have data_row with row_data in every line, got line 1 of {file}."),
        (row("gs://bucket/a.txt", "A"), "`data` labelbox: must hold its texts, got the address 'gs://bucket/a.txt' in "
         "line 1 of {file}."),
        (row("film", status="TO_LABEL", name=""), "`data` must have at least 3 training samples, got 1 in {spec}."),
        ({"data_row": {"row_data": "film"}, "projects": [3], "media_attributes": 4},
         "`data` must have at least 3 training samples, got 1 in {spec}."),
        (row("film", "A", skipped=True), "`data` must hold at least one accepted sample, got none in {file}."),
    ],
)  # fmt: skip
def test_labelbox_lines_that_are_refused(tmp_path, tokenizer, line, expected):
    file = written(tmp_path / "a.ndjson", [line])
    spec = f"labelbox:{file}"
    assert message(spec, tokenizer=tokenizer) == expected.format(file=file, spec=spec)
