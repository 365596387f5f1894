"""The servers that are measured, one module each; `base` says what a peer has to know."""
