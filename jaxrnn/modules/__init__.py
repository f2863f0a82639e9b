"""What `jaxrnn.nnx` and `jaxrnn.linen` share: sequences, carries and guarded steps.

Nothing here imports flax.
"""
