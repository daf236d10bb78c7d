"""An agent's tools: its own HTTP and MCP tools, and the built-in ones (keys, hang-up, transfer)."""
