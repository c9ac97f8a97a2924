"""The secure-aggregation protocol: keys, masks, sums. No network, no TensorFlow."""
