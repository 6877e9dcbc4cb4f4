"""PT2 archives, which `torch.export.load` reads."""
