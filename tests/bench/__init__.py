"""What storaged costs, measured against its goals: ``python -m tests.bench`` or ``make bench``."""
