"""The conversation: the voice pipeline, its providers and their fallbacks, the transcript."""
