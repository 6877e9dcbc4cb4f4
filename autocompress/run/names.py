"""Names of the files in a run folder."""

from __future__ import annotations

CONFIG, JOURNAL, PLAN, OUTCOME = "config.yaml", "journal.jsonl", "plan.yaml", "outcome.json"
LAYERS, REPORT, CARD = "layers.json", "report.html", "README.md"
SHIFTS = "journal.f16"
JOURNAL_BEFORE, SHIFTS_BEFORE = "journal.before.jsonl", "journal.before.f16"  # of a search that took another way
MODEL, MODEL_ONNX = "model.safetensors", "model.onnx"
# Of the fine-tunings of the search's plan, and of those that follow where its finished file misses the limit of time.
CHECKPOINTS = ("finetune.pt", "finetune-2.pt", "finetune-3.pt")
CHECKPOINT = CHECKPOINTS[0]
MODEL_PT2, MODEL_OPENVINO, MODEL_TFLITE = "model.pt2", "model_openvino.onnx", "model.tflite"
MODEL_PTE = "model.pte"
EXPORTED = (MODEL, MODEL_ONNX, MODEL_PT2, MODEL_OPENVINO, MODEL_TFLITE, MODEL_PTE, "model.xml", "model.bin")
POLICY_WEIGHTS, POLICY, TENSORBOARD = "policy.safetensors", "policy.json", "tb"
RUN_FILES = (
    CONFIG, JOURNAL, SHIFTS, JOURNAL_BEFORE, SHIFTS_BEFORE, PLAN, OUTCOME, LAYERS, REPORT, CARD, *EXPORTED,
    *CHECKPOINTS, POLICY_WEIGHTS, POLICY,
)  # fmt: skip
NEXT_CONFIG = "config.next.yaml"  # options of a run that has not begun; it begins when its menus are made
TOLERANCE = "tolerance.json"  # of a folder with a run for each budget that was tried
FRONT = "pareto.json"  # of a folder with a run for each of many budgets
STAGE = "stage-"  # a folder for each part before the last search, with its number
