"""The disk: every commit in a log, checkpoints beside it, and the way back from both. Formats: docs/formats.md."""
