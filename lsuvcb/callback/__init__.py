"""What the LSUVCallback of every trainer shares: its arguments, once per model, a loader's batch without a trace. No trainer."""
