"""What ``kv bench`` runs: worker processes that load the running daemon, and the report on their measurements.

plan ──▶ workers ── fork ──▶ wire_load or near_load    one process each: sends requests, counts in a tally
           │  ◀── lines of JSON ──┘
           └──▶ results ──▶ report                     all tallies together, the processor time, the verdict
"""
