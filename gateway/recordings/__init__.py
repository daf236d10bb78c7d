"""The recordings of calls: what the API serves and commands, links, retention, exports."""
