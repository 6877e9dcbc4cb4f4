"""OpenVINO: a target of its own, and its intermediate representation, both made of the ONNX file."""
