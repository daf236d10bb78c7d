"""Recordings as files: writing, spooling and uploading them, and their stores."""
