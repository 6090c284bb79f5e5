"""What no paper is about: layers, optimizers, distributions, returns, normalization, streams, configurations."""
