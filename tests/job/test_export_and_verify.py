"""Exporting and verifying finished runs."""

import json

import pytest
import torch
import yaml
from run_toys import contents, invoke, refused

import autocompress
from autocompress import InputError, api
from autocompress.data import load_data
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.openvino import ir as openvino_ir


def test_exported_files_load_and_agree(packed_run):
    done = invoke("export", packed_run, "--format", "onnx,packed,pt2", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    names = ["model.onnx", "model.safetensors", "model.pt2"]
    assert done.stdout.splitlines() == [
        f"{packed_run / name}: {(packed_run / name).stat().st_size:,} bytes" for name in names
    ]
    inputs, _ = next(iter(load_data("digits").test_batches(360)))
    expected = autocompress.load(packed_run)(inputs)
    exported = torch.export.load(packed_run / "model.pt2").module()(inputs)
    assert float((exported - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    found = open_session(packed_run / "model.onnx").run(inputs)
    assert float((found.argmax(1) == expected.argmax(1)).double().mean()) > 0.97
    assert api.verify(packed_run).passed


def test_export_of_an_onnx_run_gives_its_file_again(run):
    """Its parts may stand in another order: the packed file knows them in its own."""
    before = contents(run)
    assert api.export(run, "onnx") == [run / "model.onnx"]
    after = contents(run)
    assert len(after["model.onnx"]) == len(before["model.onnx"])
    assert {name for name in after if after[name] != before[name]} <= {"model.onnx"}
    inputs, _ = next(iter(load_data("digits").test_batches(360)))
    assert torch.equal(open_session(after["model.onnx"]).run(inputs), open_session(before["model.onnx"]).run(inputs))


def test_export_to_openvino(run):
    try:
        openvino_ir.openvino_module()
    except InputError as error:
        done = invoke("export", run, "--format", "openvino", "--quiet")
        refused(done, str(error))
        pytest.skip(str(error))
    files = api.export(run, "openvino")
    assert files == [run / "model.xml", run / "model.bin"]
    inputs, _ = next(iter(load_data("digits").test_batches(360)))
    found, expected = openvino_ir.run_openvino(files[0], inputs), autocompress.load(run)(inputs)
    assert float((found.argmax(1) == expected.argmax(1)).double().mean()) > 0.97


def test_unknown_format_lists_the_choices_and_writes_nothing(packed_run):
    before = contents(packed_run)
    done = invoke("export", packed_run, "--format", "pt2,tflite", "--quiet")
    refused(
        done,
        "`format` must be one of executorch, litert, onnx, openvino, packed, pt2, got 'tflite' (did you mean litert?).",
    )
    assert contents(packed_run) == before


def test_verify_prints_a_table_and_json(run):
    done = invoke("verify", run, "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "FAILED" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("latency at batch 32, one thread: ")]
    data = json.loads(invoke("verify", run, "--quiet", "--format", "json").stdout)
    assert data["verified"] is True
    assert [check["name"] for check in data["checks"]] == [
        "channels", "levels", "budget", "agreement", "plan", "bytes", "bytes", "accuracy", "accuracy",
    ]  # fmt: skip


def tamper_plan(run):
    path = run / "plan.yaml"
    plan = yaml.safe_load(path.read_text())
    plan["labels"]["second"]["weight_bits"] = 2
    path.write_text(yaml.safe_dump(plan))
    return "plan: plan.yaml and model.safetensors hold other labels for second"


def lose_a_layer(run):
    path = run / "plan.yaml"
    plan = yaml.safe_load(path.read_text())
    del plan["labels"]["second"]
    path.write_text(yaml.safe_dump(plan))
    return "plan: plan.yaml and model.safetensors hold other labels for second"


def swap_outcome(run):
    path = run / "outcome.json"
    outcome = json.loads(path.read_text())
    claimed, size = outcome["file_bytes"]["model.onnx"] - 1, outcome["file_bytes"]["model.onnx"]
    outcome["file_bytes"]["model.onnx"] = claimed
    path.write_text(json.dumps(outcome))
    return f"bytes: model.onnx has {size:,} bytes, outcome.json says {claimed:,}"


def tamper_budget(run):
    path = run / "outcome.json"
    outcome = json.loads(path.read_text())
    size = outcome["compressed"]["resources"]["size"]
    outcome["budget"]["limits"] = {"size": size - 1}
    path.write_text(json.dumps(outcome))
    return f"budget: size {size:,} of {size - 1:,}"


@pytest.mark.parametrize("tamper", [tamper_plan, lose_a_layer, swap_outcome, tamper_budget])
def test_verify_names_the_claim_that_does_not_hold(tamper, run):
    line = tamper(run)
    done = invoke("verify", run, "--quiet")
    assert done.exit_code == 1
    assert done.stderr == f"autocompress: verification failed: {line}\n"
    assert "FAILED" in done.stdout


def test_verify_finds_another_weight_in_the_onnx_file(run):
    """The head's codes turned over, in a file of the same length."""
    import onnx

    proto = onnx.load(run / "model.onnx")
    (codes,) = [
        tensor for tensor in proto.graph.initializer
        if sorted(tensor.dims) == [6, 10] and tensor.data_type == onnx.TensorProto.INT8
    ]  # fmt: skip
    codes.raw_data = bytes(codes.raw_data[::-1])
    (run / "model.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    done = invoke("verify", run, "--quiet")
    assert done.exit_code == 1
    assert done.stderr.startswith("autocompress: verification failed: agreement: ONNX Runtime agrees with PyTorch on ")


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "outcome.json", "plan.yaml"])
def test_truncated_files_are_one_line(name, run):
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    for command in (["verify", run, "--quiet"], ["finetune", run, "--epochs", "1", "--quiet"]):
        if name == "model.onnx" and command[0] == "finetune":
            continue  # it is written anew
        done = invoke(*command)
        assert (done.exit_code, done.stdout) == (2, ""), (command, done.stderr, done.exception)
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("autocompress: ")


def test_a_folder_that_is_no_finished_run(run, tmp_path):
    for arguments in (["verify"], ["export", "--format", "onnx"], ["finetune", "--epochs", "1"]):
        missing = tmp_path / "none"
        message = f"`run` must be the folder of a finished run, got {missing}, which has no config.yaml."
        refused(invoke(arguments[0], missing, *arguments[1:]), message)
    (run / "outcome.json").unlink()
    message = f"`run` must be the folder of a finished run, got {run}, which has no outcome.json."
    refused(invoke("verify", run), message)


def test_a_run_without_its_targets_file(run):
    (run / "model.onnx").unlink()
    refused(invoke("verify", run, "--quiet"), f"`run` must hold model.onnx, got {run} without it; export it again.")
    assert invoke("export", run, "--format", "onnx", "--quiet").exit_code == 0
    assert invoke("verify", run, "--quiet").exit_code == 0
