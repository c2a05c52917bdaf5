"""Read checkpoints, and define the decoder that the supported families share."""
