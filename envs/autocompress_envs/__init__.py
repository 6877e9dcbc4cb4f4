"""The Gymnasium environment of autocompress: NumPy and Gymnasium only."""
