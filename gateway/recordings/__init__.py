"""The recordings of calls: what the API serves, links, retention."""
