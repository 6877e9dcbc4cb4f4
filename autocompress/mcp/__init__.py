"""Tools for coding assistants, by the Model Context Protocol (extra `mcp`)."""
