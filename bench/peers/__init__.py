"""The measured servers, one module each. `base` says what a peer must provide."""
