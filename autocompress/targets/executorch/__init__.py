"""ExecuTorch files, which its XNNPACK backend runs. Needs the extra `executorch`."""
