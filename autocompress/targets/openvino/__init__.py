"""OpenVINO's intermediate representation, made of the ONNX file."""
