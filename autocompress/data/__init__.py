"""Data by spec string, or from tensors and datasets in memory."""

from autocompress.data.arrays import from_datasets, from_tensors
from autocompress.data.dataset import Data
from autocompress.data.registry import load_data
from autocompress.data.sources import Source

__all__ = ["Data", "Source", "from_datasets", "from_tensors", "load_data"]
