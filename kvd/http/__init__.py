"""The optional HTTP listener: /v1/ as the original had it, /v2/ beyond it. Imported only if it is to listen."""
