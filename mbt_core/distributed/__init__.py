"""Many processes: launching them, the process group, and models that are sharded over it."""
