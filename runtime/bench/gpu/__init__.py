"""What an engine reaches on a GPU, beside what the GPU could do."""
