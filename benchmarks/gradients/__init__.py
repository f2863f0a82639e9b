"""How gradients decay with lag, at initialization and in training."""
