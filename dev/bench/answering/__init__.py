"""The benchmark of the first word: from the answer to the agent's voice, beside a bare worker."""
