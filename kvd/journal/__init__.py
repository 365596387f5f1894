"""The disk: a log of every commit, checkpoints beside it, and recovery from both. Formats: docs/formats.md."""
