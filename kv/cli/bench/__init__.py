"""The work of ``kv bench``: worker processes that load the running daemon, and what is made of their measurements.

plan ──▶ workers ── fork ──▶ wire_load or near_load    one process each: does the work, counts in a tally
           │  ◀── lines of JSON ──┘
           └──▶ findings ──▶ report                    all tallies together, the processor's time, the verdict
"""
