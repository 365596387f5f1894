"""The command ``kv``. Start reading at main.py; commands/ has one module for each command.

Imports nothing heavy on the way to the daemon and back: the whole command should cost little more than starting Python.
"""
