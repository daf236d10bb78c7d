"""The conversation: pipeline, turn taking, providers, their fallbacks and failures, transcript."""
