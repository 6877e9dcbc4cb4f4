"""Networks from ONNX files.

`load_onnx` takes these steps:

1. `reading.py`: the file is read and checked; its functions are inlined.
2. `constants.py`: what does not depend on the input is computed.
3. `translation.py`, `building.py` and `operators/`: every other node becomes steps over torch operators and modules.
4. `checking.py`: the network must compute what ONNX Runtime computes.
"""

from autocompress.models.onnx.loading import load_onnx
from autocompress.models.onnx.network import OnnxNetwork

__all__ = ["OnnxNetwork", "load_onnx"]
