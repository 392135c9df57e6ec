"""What a model costs: operations, parameters, memory, time."""
