"""The optional HTTP listener: /v1/ as in the original service, /v2/ beyond it. Imported only if it is configured."""
