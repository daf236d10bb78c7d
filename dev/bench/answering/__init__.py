"""The benchmark of the answer and the first word, compared with a bare worker."""
