"""LiteRT (formerly TensorFlow Lite): `model.tflite`, written without a converter. Needs the extra `litert`."""
