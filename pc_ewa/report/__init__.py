"""Pages and pictures of finished runs: what a run folder holds, shown."""
