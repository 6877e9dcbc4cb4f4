"""ONNX files, and ONNX Runtime, which runs them: `file` says how a graph becomes one, `session` loads it."""
