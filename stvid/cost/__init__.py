"""What a model needs, before it is trained: parameters, memory, compute."""
