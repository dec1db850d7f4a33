"""What surrounds model.py: weights as a Hugging Face folder, kernels for CPUs."""
