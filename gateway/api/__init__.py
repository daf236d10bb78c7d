"""HTTP handlers and their models, by path; imported by gateway.routes alone."""
