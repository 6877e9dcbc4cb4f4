"""Networks from local folders in the form of Hugging Face."""

import json

import pytest
import torch

from autocompress.errors import InputError
from autocompress.models import load_model
from autocompress.network import trace
from autocompress.network.interface import interfaced
from autocompress.samples import call, from_tree

transformers = pytest.importorskip("transformers", reason="needs the extra text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=12, num_labels=3,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("bert")
    transformers.BertForSequenceClassification(config).save_pretrained(place)
    return place


def message(*arguments, **options):
    with pytest.raises(InputError) as error:
        load_model(*arguments, **options)
    return str(error.value)


def test_a_bert_is_traced_by_its_layers(folder):
    model = load_model(f"hf:{folder}", num_classes=3)
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).long()
    inputs = from_tree({"input_ids": torch.randint(1, 50, (2, 9)) * mask, "attention_mask": mask})
    ours = interfaced(model, inputs)
    assert torch.equal(call(ours, inputs), model(input_ids=inputs.tensors[0], attention_mask=mask).logits)
    network = trace(ours, inputs)
    kinds = [layer.kind for layer in network.layers]
    assert (kinds.count("embedding"), kinds.count("linear")) == (1, 2 * 6 + 2)
    assert [group.owner for group in network.groups] == [
        *(f"bert.encoder.layer.{number}.{part}" for number in range(2) for part in (
            "attention.self.query", "intermediate.dense",
        )), "bert.pooler.dense",
    ]  # fmt: skip


def test_what_is_no_classifier_of_transformers(folder, tmp_path):
    assert message(f"hf:{tmp_path}") == f"`model` hf:FOLDER must be a folder with config.json, got {tmp_path}."
    content = json.loads((folder / "config.json").read_text())
    for changes, expected in (
        (
            {"architectures": ["BertModel"]},
            "must be a classifier (…ForSequenceClassification, …ForImageClassification, …ForAudioClassification), "
            f"got BertModel in {tmp_path}.",
        ),
        (
            {"architectures": ["NobodyForSequenceClassification"]},
            f"must be of an architecture of transformers, got 'NobodyForSequenceClassification' in {tmp_path}.",
        ),
        (
            {"auto_map": {"AutoModel": "code.Net"}},
            f"must be of a class of transformers, got code of its own in {tmp_path}.",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | changes))
        assert message(f"hf:{tmp_path}") == f"`model` hf:FOLDER {expected}"
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert message(f"hf:{tmp_path}").startswith(
        f"`model` hf:FOLDER must be a whole network of BertForSequenceClassification, got {tmp_path}: "
    )


def test_weights_that_are_missing_are_not_drawn(folder, tmp_path):
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    model.save_pretrained(tmp_path, state_dict=state)
    assert message(f"hf:{tmp_path}") == (
        f"`model` hf:FOLDER must hold all weights of BertForSequenceClassification, got {tmp_path} without "
        "classifier.bias and 1 others."
    )


def test_the_number_of_classes_is_the_networks_own(folder, capfd):
    assert load_model(f"hf:{folder}", num_classes=10).classifier.out_features == 3
    assert capfd.readouterr() == ("", "")


def test_nothing_is_loaded_from_elsewhere(folder):
    assert message(f"hf:{folder}", model_args={"trust_remote_code": True}) == (
        f"`model_args` of hf:{folder} must not say where anything is loaded from, got trust_remote_code."
    )
