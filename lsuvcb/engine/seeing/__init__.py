"""Which op works with which weight, and what takes its output: seen in a forward, without hooks on the weights."""
