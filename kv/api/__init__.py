"""What both clients offer, declared once: methods, procedures, transactions, locks, snapshots, history."""
