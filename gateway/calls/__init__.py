"""The life of a call, from the plan to the record; no HTTP request comes in here."""
