"""An agent's tools: the headers of their requests, and the schema of their arguments."""
