"""What an agent can do besides talk: HTTP and MCP tools, keys, hang up, transfer."""
